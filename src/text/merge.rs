//! Merging neighbours until nothing merges: the loop that BPE and SentencePiece share.
//!
//! Symbols are a linked list in one vector, candidates a heap ordered by (order, place). Each
//! merge makes at most two new candidates, and one whose symbols have changed meanwhile is
//! recognised and dropped when it comes up, so n symbols take O(n log n) whatever they are: a
//! megabyte of one letter costs what a megabyte of prose does. Both vectors are kept from one
//! word to the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A run of bytes that is one token so far, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// First byte.
    pub start: u32,
    /// The byte after the last; equal to `start` once merged into the one before.
    pub end: u32,
    /// The token, if there is one.
    pub id: Option<u32>,
    prev: u32,
    next: u32,
}

/// A merge that might happen. The field order is the order of happening.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Candidate {
    order: u32,
    left: u32,
    right: u32,
    end: u32,
    id: u32,
}

/// Symbols and candidates, reused from call to call.
#[derive(Default, Debug)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the symbols of the last text.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Adds a symbol of `bytes` bytes after the last.
    pub fn push(&mut self, bytes: u32, id: Option<u32>) {
        let at = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.end);
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, end: start + bytes, id, prev, next: NONE });
    }

    /// Merges as long as `pair` gives an order and an id for two neighbours, the smallest order
    /// first, of equal ones the leftmost.
    pub fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &pair);
        }
        while let Some(Reverse(c)) = self.heap.pop() {
            let (Some(&left), Some(&right)) = (self.get(c.left), self.get(c.right)) else {
                continue;
            };
            // Starts never move, so a candidate stands if its two are still neighbours and the
            // right one ends where it did.
            if left.end == left.start || left.next != c.right || right.end != c.end {
                continue;
            }
            if let Some(s) = self.get_mut(c.left) {
                s.end = c.end;
                s.id = Some(c.id);
                s.next = right.next;
            }
            if let Some(s) = self.get_mut(c.right) {
                s.end = s.start;
            }
            if let Some(s) = self.get_mut(right.next) {
                s.prev = c.left;
            }
            self.consider(left.prev, c.left, &pair);
            self.consider(c.left, right.next, &pair);
        }
    }

    /// The symbols that are left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.end != s.start)
    }

    fn get(&self, at: u32) -> Option<&Symbol> {
        self.symbols.get(at as usize)
    }

    fn get_mut(&mut self, at: u32) -> Option<&mut Symbol> {
        self.symbols.get_mut(at as usize)
    }

    fn consider(
        &mut self,
        left: u32,
        right: u32,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        let (Some(l), Some(r)) = (self.get(left), self.get(right)) else { return };
        if let Some((order, id)) = pair(l, r) {
            self.heap.push(Reverse(Candidate { order, left, right, end: r.end, id }));
        }
    }
}
