//! How long the launches of a step take, as a session measures it.
//!
//! A session knows its launches and the time of each; what they stand for in the graph, and what they
//! move, follows from the plan and is joined elsewhere (`replay::profile`).

use crate::graph::NodeId;

/// What of its group a launch does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it, or a share that cannot be told apart.
    Whole,
    /// What comes before a product.
    Before,
    /// The product, and what rides along with it.
    Product,
    /// What comes after a product and sees whole heads.
    After,
}

/// A launch with its time.
#[derive(Clone, PartialEq, Debug)]
pub struct Timed {
    /// The group that it belongs to.
    pub group: usize,
    /// What of the group it does.
    pub part: Part,
    /// Whether it does what comes after the product of the group before as well.
    pub takes_on: bool,
    /// What runs: a kernel's name.
    pub kernel: String,
    /// The weights that it reads; `None` for all that its nodes read.
    pub weights: Option<Vec<NodeId>>,
    /// From the end of the launch before to its own end. Launches may overlap, and a difference of
    /// two measurements may be below zero.
    pub seconds: f64,
    /// Of that, what its workers stood waiting for each other on average; `None` where nobody knows.
    pub waits: Option<f64>,
}

/// A rate that memory does not exceed, and where the number is from.
#[derive(Clone, PartialEq, Debug)]
pub struct Rate {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// How it was found.
    pub how: &'static str,
}

/// What a step over one row takes.
#[derive(Clone, PartialEq, Debug)]
pub struct Times {
    /// In run order.
    pub launches: Vec<Timed>,
    /// What is measured where nothing is launched; it is a part of no launch and of no sum.
    pub clock: f64,
    /// The whole step, replayed as ever with nobody watching.
    pub replay: f64,
    /// The same with the host's part: from one token to the next.
    pub token: f64,
    /// As many launches that do nothing.
    pub empty: Option<f64>,
    /// The roof over all launches.
    pub ceiling: Rate,
    /// What was measured beside it.
    pub beside: Option<Rate>,
    /// Steps that were watched.
    pub steps: usize,
}

/// The value in the middle, or between the two that are; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    let (half, last) = (values.len() / 2, values.len().saturating_sub(1));
    if values.len() % 2 == 1 { at(half) } else { (at(half) + at(last - half)) / 2.0 }
}
