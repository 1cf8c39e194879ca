//! A certificate authority whose certificates replace each other on disk.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SerialNumber};

pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Puts a new certificate and key for `name` into `directory`; returns its serial number as the
    /// collector sees it.
    pub(crate) fn issue(&self, directory: &Path, name: &str, host: &str) -> String {
        let (certificate, key, serial) = self.certify(name, host);
        replace(&directory.join(format!("{name}.key")), &key);
        replace(&directory.join(format!("{name}.pem")), &certificate);
        serial
    }

    /// Returns certificate, key and serial number.
    pub(crate) fn certify(&self, name: &str, host: &str) -> (String, String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let serial: [u8; 8] = rand::random::<u64>().max(1 << 56).to_be_bytes();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        (
            certificate.pem(),
            key.serialize_pem(),
            parsed.raw_serial_as_string(),
        )
    }
}

/// Replaces a file in one step, as a person should.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("replacing");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}
