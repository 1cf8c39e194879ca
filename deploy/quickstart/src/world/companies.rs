//! The forty companies of the sample world: who they are, where they work, how big they are.
//!
//! Invented names, real time zones. The first one owns the write key `demo-write-key`.

use chrono_tz::Tz;

/// What does not change about a company.
#[derive(Debug)]
pub struct Profile {
    /// Company id in the events and in the operational database.
    pub id: &'static str,
    /// Display name.
    pub name: &'static str,
    /// Line of business.
    pub industry: &'static str,
    /// Country, ISO 3166 alpha-2.
    pub country: &'static str,
    /// IANA time zone: decides the business day.
    pub timezone: Tz,
    /// Currency it is billed in, ISO 4217.
    pub currency: &'static str,
    /// Sales region.
    pub region: &'static str,
    /// People employed.
    pub employees: i64,
    /// Support teammates, and so the seats it needs.
    pub teammates: usize,
    /// Weight of its conversations among all companies.
    pub weight: f64,
}

const fn company(
    id: &'static str,
    name: &'static str,
    industry: &'static str,
    place: (&'static str, Tz, &'static str, &'static str),
    size: (i64, usize, f64),
) -> Profile {
    Profile {
        id,
        name,
        industry,
        country: place.0,
        timezone: place.1,
        currency: place.2,
        region: place.3,
        employees: size.0,
        teammates: size.1,
        weight: size.2,
    }
}

const US_EAST: (&str, Tz, &str, &str) = ("US", Tz::America__New_York, "USD", "Americas");
const US_CENTRAL: (&str, Tz, &str, &str) = ("US", Tz::America__Chicago, "USD", "Americas");
const US_WEST: (&str, Tz, &str, &str) = ("US", Tz::America__Los_Angeles, "USD", "Americas");
const UK: (&str, Tz, &str, &str) = ("GB", Tz::Europe__London, "GBP", "EMEA");
const GERMANY: (&str, Tz, &str, &str) = ("DE", Tz::Europe__Berlin, "EUR", "EMEA");
const FRANCE: (&str, Tz, &str, &str) = ("FR", Tz::Europe__Paris, "EUR", "EMEA");
const AUSTRALIA: (&str, Tz, &str, &str) = ("AU", Tz::Australia__Sydney, "AUD", "APAC");
const JAPAN: (&str, Tz, &str, &str) = ("JP", Tz::Asia__Tokyo, "JPY", "APAC");
const INDIA: (&str, Tz, &str, &str) = ("IN", Tz::Asia__Kolkata, "USD", "APAC");

/// All companies. Their order is part of the seeded world: append, do not insert.
#[rustfmt::skip]
pub static COMPANIES: [Profile; 40] = [
    company("harbor-and-pine", "Harbor & Pine", "Home furnishing", US_EAST, (640, 18, 2.6)),
    company("northwind-parcels", "Northwind Parcels", "Logistics", US_CENTRAL, (2_100, 26, 4.2)),
    company("lumen-health", "Lumen Health", "Healthcare", US_EAST, (480, 14, 1.7)),
    company("tidal-bank", "Tidal Bank", "Financial services", US_EAST, (3_900, 28, 4.6)),
    company("cedar-street-books", "Cedar Street Books", "Retail", US_WEST, (85, 5, 0.5)),
    company("brightkite-energy", "Brightkite Energy", "Utilities", US_CENTRAL, (1_250, 20, 2.9)),
    company("paperlane", "Paperlane", "Software", US_WEST, (220, 9, 1.3)),
    company("summit-trail-gear", "Summit Trail Gear", "Retail", ("US", Tz::America__Denver, "USD", "Americas"), (160, 7, 0.8)),
    company("foxglove-games", "Foxglove Games", "Games", US_WEST, (310, 12, 2.2)),
    company("maple-ledger", "Maple Ledger", "Accounting software", ("CA", Tz::America__Toronto, "USD", "Americas"), (140, 7, 0.9)),
    company("casa-verde", "Casa Verde", "Real estate", ("MX", Tz::America__Mexico_City, "USD", "Americas"), (390, 10, 1.1)),
    company("banco-ipe", "Banco Ipê", "Financial services", ("BR", Tz::America__Sao_Paulo, "USD", "Americas"), (1_700, 22, 3.4)),
    company("pampa-foods", "Pampa Foods", "Food delivery", ("AR", Tz::America__Argentina__Buenos_Aires, "USD", "Americas"), (520, 13, 1.8)),
    company("thornbury-insurance", "Thornbury Insurance", "Insurance", UK, (980, 17, 2.1)),
    company("kettle-and-crumb", "Kettle & Crumb", "Food delivery", UK, (75, 5, 0.6)),
    company("railwise", "Railwise", "Travel", UK, (430, 15, 2.4)),
    company("gorse-telecom", "Gorse Telecom", "Telecommunications", ("IE", Tz::Europe__Dublin, "EUR", "EMEA"), (760, 16, 2.3)),
    company("falkenrad", "Falkenrad", "Mobility", GERMANY, (350, 12, 1.6)),
    company("sternwerk", "Sternwerk", "Industrial equipment", GERMANY, (2_800, 15, 1.2)),
    company("kornblume-apotheke", "Kornblume Apotheke", "Healthcare", GERMANY, (190, 8, 1.0)),
    company("atelier-lune", "Atelier Lune", "Fashion", FRANCE, (260, 9, 1.2)),
    company("voyages-alize", "Voyages Alizé", "Travel", FRANCE, (410, 12, 1.5)),
    company("sol-y-mar-hoteles", "Sol y Mar Hoteles", "Hospitality", ("ES", Tz::Europe__Madrid, "EUR", "EMEA"), (1_100, 14, 1.7)),
    company("vento-moto", "Vento Moto", "Automotive", ("IT", Tz::Europe__Rome, "EUR", "EMEA"), (330, 8, 0.9)),
    company("dijkstra-bikes", "Dijkstra Bikes", "Retail", ("NL", Tz::Europe__Amsterdam, "EUR", "EMEA"), (120, 6, 0.8)),
    company("fjord-streaming", "Fjord Streaming", "Media", ("SE", Tz::Europe__Stockholm, "EUR", "EMEA"), (540, 13, 1.9)),
    company("bursztyn-soft", "Bursztyn Soft", "Software", ("PL", Tz::Europe__Warsaw, "EUR", "EMEA"), (95, 5, 0.5)),
    company("alpenblick-versicherung", "Alpenblick Versicherung", "Insurance", ("CH", Tz::Europe__Zurich, "EUR", "EMEA"), (870, 11, 1.1)),
    company("savanna-pay", "Savanna Pay", "Payments", ("KE", Tz::Africa__Nairobi, "USD", "EMEA"), (290, 11, 1.9)),
    company("lagoon-mobile", "Lagoon Mobile", "Telecommunications", ("NG", Tz::Africa__Lagos, "USD", "EMEA"), (610, 14, 2.0)),
    company("protea-wines", "Protea Wines", "Food and drink", ("ZA", Tz::Africa__Johannesburg, "USD", "EMEA"), (110, 4, 0.4)),
    company("marina-estates", "Marina Estates", "Real estate", ("AE", Tz::Asia__Dubai, "USD", "EMEA"), (240, 7, 0.7)),
    company("chai-junction", "Chai Junction", "Food delivery", INDIA, (1_400, 24, 3.8)),
    company("nilgiri-cloud", "Nilgiri Cloud", "Software", INDIA, (680, 16, 2.0)),
    company("merlion-logistics", "Merlion Logistics", "Logistics", ("SG", Tz::Asia__Singapore, "USD", "APAC"), (450, 11, 1.4)),
    company("batik-market", "Batik Market", "Marketplace", ("ID", Tz::Asia__Jakarta, "USD", "APAC"), (920, 17, 2.5)),
    company("hinode-denki", "Hinode Denki", "Consumer electronics", JAPAN, (3_200, 16, 1.8)),
    company("kumo-travel", "Kumo Travel", "Travel", JAPAN, (370, 9, 1.0)),
    company("wattle-and-stone", "Wattle & Stone", "Home furnishing", AUSTRALIA, (180, 6, 0.7)),
    company("kea-outdoors", "Kea Outdoors", "Retail", ("NZ", Tz::Pacific__Auckland, "AUD", "APAC"), (130, 5, 0.6)),
];
