//! Memory for a session: asked for once, checked against what there is.

use crate::{Error, Result};
use memmap2::MmapMut;
use std::fs;

/// Zeroed memory at a page's beginning, in huge pages where the system has them. A page is taken
/// from the system when it is first touched.
pub(super) struct Memory(MmapMut);

impl Memory {
    pub(super) fn new(bytes: usize) -> Result<Memory> {
        let map = MmapMut::map_anon(bytes.max(1))
            .map_err(|e| Error::Io { path: format!("{bytes} bytes of memory"), source: e })?;
        #[cfg(target_os = "linux")]
        if bytes >= 1 << 22 {
            // Advice: fewer address translations while weights stream. Nothing depends on it.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Memory(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(super) fn pointer(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

/// Bytes that this process can still have: what the system calls available, within the limit of
/// the control group, if there is one. `None` where the system does not tell.
pub fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let system = kib.saturating_mul(1024);
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    let group =
        limits.iter().find_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)));
    Some(group.map_or(system, |g| g.min(system)))
}
