//! Small files, read whole: graph files and the JSON beside weights.

use crate::error::{Error, Result};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The bytes of a regular file of at most `limit` bytes; anything else is refused.
///
/// # Errors
/// When the system refuses, or the file is longer or no regular file.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source);
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        let what = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(io(what));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let what = format!("longer than {limit} bytes");
        return Err(io(io::Error::new(io::ErrorKind::InvalidData, what)));
    }
    Ok(bytes)
}
