//! The read bandwidth of this machine: the roof over every decode step.

use super::memory::Memory;
use super::pool::Pool;
use crate::{Error, Result};
use std::time::Instant;

/// Bytes a second that `threads` threads read from memory together: the best of several passes
/// over more bytes than the caches hold.
///
/// # Errors
/// When there is no memory or no thread for it.
pub fn read_bandwidth(threads: usize) -> Result<f64> {
    const BYTES: usize = 512 << 20;
    const PASSES: usize = 4;
    let mut memory = Memory::new(BYTES)?;
    let mut pool = Pool::new(threads)?;
    memory.bytes_mut().chunks_mut(4096).for_each(|page| page[0] = 1);
    let words = memory.bytes();
    let mut best = 0.0f64;
    for _ in 0..PASSES {
        let start = Instant::now();
        pool.run(&|worker| {
            let lines = worker.share(BYTES / 64);
            let mut sums = [0u64; 8];
            for line in words[lines.start * 64..lines.end * 64].chunks_exact(64) {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            std::hint::black_box(sums);
        })
        .map_err(|e| Error::Invalid(e.to_string()))?;
        best = best.max(BYTES as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}
