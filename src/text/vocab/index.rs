//! The way back from a text to its id.

use std::hash::{BuildHasher, RandomState};

use super::reserved;
use crate::error::Result;

/// Where the tokens are by their text: slots of `id + 1`, zero for a free one.
#[derive(Debug)]
pub(super) struct Index {
    slots: Vec<u32>,
    hash: RandomState,
}

impl Index {
    pub(super) fn new(count: usize) -> Result<Self> {
        let size = count.saturating_mul(2).next_power_of_two();
        let mut slots = reserved(size)?;
        slots.resize(size, 0);
        Ok(Index { slots, hash: RandomState::new() })
    }

    /// The slot that holds `text`, or the free one where it would go.
    fn slot(&self, text: &[u8], bytes: &[u8], ends: &[u32]) -> Option<(usize, Option<u32>)> {
        // At most half the slots are taken, so the walk ends at a free one.
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = self.hash.hash_one(text) as usize & mask;
        loop {
            match self.slots.get(at)?.checked_sub(1) {
                None => return Some((at, None)),
                Some(id) if text_of(bytes, ends, id) == Some(text) => return Some((at, Some(id))),
                Some(_) => at = (at + 1) & mask,
            }
        }
    }

    pub(super) fn find(&self, text: &[u8], bytes: &[u8], ends: &[u32]) -> Option<u32> {
        self.slot(text, bytes, ends)?.1
    }

    /// Enters a token unless its text is there already.
    pub(super) fn insert(&mut self, id: u32, bytes: &[u8], ends: &[u32]) -> bool {
        let text = text_of(bytes, ends, id).unwrap_or_default();
        match self.slot(text, bytes, ends) {
            Some((at, None)) => {
                if let Some(slot) = self.slots.get_mut(at) {
                    *slot = id.saturating_add(1);
                }
                true
            }
            _ => false,
        }
    }
}

pub(super) fn text_of<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> Option<&'a [u8]> {
    let id = usize::try_from(id).ok()?;
    let end = *ends.get(id)? as usize;
    let start = match id.checked_sub(1) {
        Some(before) => *ends.get(before)? as usize,
        None => 0,
    };
    bytes.get(start..end)
}
