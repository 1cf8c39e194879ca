//! Metadata files: what the catalog points at.
//!
//! Place on the event's path: written by each commit before the swap. The crate's own writer compresses
//! at zlib's default level and on the thread that serves others; a commit waits for it, and with many
//! snapshots and agents that was most of its time.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use iceberg::io::FileIO;
use iceberg::spec::TableMetadata;
use iceberg::{ErrorKind, MetadataLocation};

use crate::blocking::blocking;

/// Level of gzip. 2: the lowest with Huffman codes of its own, without which watermarks would not shrink;
/// files of watermarks and snapshots become a tenth larger than at level 6, in a third of the time.
pub const METADATA_GZIP_LEVEL: u32 = 2;

/// Writes a metadata file, compressed if its location says so, and gives the metadata back.
pub(super) async fn write(
    file_io: &FileIO,
    metadata: TableMetadata,
    location: &MetadataLocation,
) -> Result<TableMetadata, iceberg::Error> {
    let location = location.to_string();
    let is_compressed = location.ends_with(".gz.metadata.json");
    let encoded = blocking(move || (encode(&metadata, is_compressed), metadata)).await;
    let (bytes, metadata) =
        encoded.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()));
    let output = file_io.new_output(&location)?;
    output.write(bytes?.into()).await?;
    Ok(metadata)
}

fn encode(metadata: &TableMetadata, is_compressed: bool) -> Result<Vec<u8>, iceberg::Error> {
    let json = serde_json::to_vec(metadata)?;
    if !is_compressed {
        return Ok(json);
    }
    let compressed = Vec::with_capacity(json.len() / 4);
    let mut gzip = GzEncoder::new(compressed, Compression::new(METADATA_GZIP_LEVEL));
    gzip.write_all(&json)
        .and_then(|()| gzip.finish())
        .map_err(|error| {
            iceberg::Error::new(ErrorKind::Unexpected, "metadata cannot be compressed")
                .with_source(error)
        })
}
