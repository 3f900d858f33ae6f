//! A plan in the device's terms: launches with their parameters, and the memory they share.

use super::abi::{
    Attend, AttendFew, AttendOne, Chain, Experts, Gemm, Gemv, Picks, RowList, Sample, Several,
};
use super::driver::Shape;
use super::layout::{Layout, Product};
use crate::graph::op::Rope;
use crate::graph::{Lead, NodeId};
use crate::plan::Plan;

/// A plan that was found to lower. Addresses come with the memory, so launches are made at load.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) plan: Plan,
    pub(super) work: Work,
    pub(super) tensors: Vec<Tensor>,
    pub(super) ropes: Vec<RopeTable>,
    /// Launches of a step.
    pub(super) launches: usize,
    pub(super) vocabulary: usize,
}

impl Program {
    /// Launches of a step, the sampler's included.
    pub fn launches(&self) -> usize {
        self.launches
    }
}

/// A weight and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub offset: u64,
    pub kind: TensorKind,
}

/// How a weight is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum TensorKind {
    /// Panels, for products and embeddings.
    Matrix(Layout),
    /// So many matrices, one after the other.
    Experts(Layout, usize),
    /// So many f32, for norms and biases.
    Vector(usize),
}

/// A rotation whose sines and cosines are tabled for every position.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct RopeTable {
    pub rope: Rope,
    /// The node of the factors, and their name.
    pub factors: Option<(NodeId, String)>,
    /// First byte in the memory of tables.
    pub offset: usize,
}

/// Bytes of each part of the workspace. Groups take turns in all but the last nine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Work {
    /// Products whose epilogue is a launch of its own.
    pub raw: usize,
    /// Rows that a prologue made: one for a product, all for experts, with their picks behind.
    pub x: usize,
    /// Rows as two bf16 each: the high parts, then as many low parts; on sm_90 both in tiles, twice.
    pub split: usize,
    /// Partial attention of chunks.
    pub partial: usize,
    /// Logits after penalties, and the best of each block.
    pub adjusted: usize,
    pub best: usize,
    /// How many chunks of a head are done; zero between launches.
    pub arrived: usize,
    /// Tokens sampled in a step.
    pub sampled: usize,
    /// Tokens by slot and position.
    pub history: usize,
    /// Tokens, positions, slots, rows with logits; then the sampler.
    pub state: usize,
    /// What products and attention over one row leave, each in a place of its own, twice: for steps in
    /// turn.
    pub fresh: usize,
    /// Parameters of chains, for steps in turn.
    pub links: usize,
    /// The same two of chains over several rows.
    pub several: usize,
    pub several_links: usize,
    /// Picks sorted by expert.
    pub sorted: usize,
}

impl Work {
    pub(super) const PARTS: usize = 15;

    /// The larger of each part.
    pub(super) fn max(self, o: Work) -> Work {
        Work {
            raw: self.raw.max(o.raw),
            x: self.x.max(o.x),
            split: self.split.max(o.split),
            partial: self.partial.max(o.partial),
            adjusted: self.adjusted.max(o.adjusted),
            best: self.best.max(o.best),
            arrived: self.arrived.max(o.arrived),
            sampled: self.sampled.max(o.sampled),
            history: self.history.max(o.history),
            state: self.state.max(o.state),
            fresh: self.fresh.max(o.fresh),
            links: self.links.max(o.links),
            several: self.several.max(o.several),
            several_links: self.several_links.max(o.several_links),
            sorted: self.sorted.max(o.sorted),
        }
    }

    /// First byte of each part, in the order of the fields, and the end.
    pub(super) fn offsets(&self) -> Option<[usize; Work::PARTS + 1]> {
        let parts = [
            self.raw,
            self.x,
            self.split,
            self.partial,
            self.adjusted,
            self.best,
            self.arrived,
            self.sampled,
            self.history,
            self.state,
            self.fresh,
            self.links,
            self.several,
            self.several_links,
            self.sorted,
        ];
        let mut at = [0usize; Work::PARTS + 1];
        for (i, bytes) in parts.into_iter().enumerate() {
            at[i + 1] = at[i].checked_add(bytes.checked_next_multiple_of(256)?)?;
        }
        Some(at)
    }
}

/// Where everything is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bases {
    pub weights: u64,
    pub kv: u64,
    pub scratch: u64,
    pub logits: u64,
    pub tables: u64,
    pub raw: u64,
    pub x: u64,
    pub high: u64,
    pub low: u64,
    pub partial: u64,
    pub adjusted: u64,
    pub best: u64,
    pub arrived: u64,
    pub sampled: u64,
    pub history: u64,
    pub tokens: u64,
    pub positions: u64,
    pub slots: u64,
    pub outs: u64,
    pub sampler: u64,
    /// In the host's memory.
    pub result: u64,
    /// What is left in this turn, and how far from there the next one's place is; no chains if that is 0.
    pub fresh: u64,
    pub next: i64,
    pub links: u64,
    pub sorted: u64,
    /// Rows of a step at most, if attention makes their heads; else 0.
    pub few: usize,
}

impl Bases {
    /// No memory yet, but chains are made as they will be.
    pub(super) fn unknown(work: &Work) -> Bases {
        Bases { fresh: 1 << 62, next: work.fresh as i64 / 2, ..Bases::default() }
    }
}

/// A kernel of the cubins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kernel {
    Gemv(Product),
    Gemm(Product),
    Experts(Product),
    /// Of rows sorted by the experts that they picked.
    Picked(Product),
    SortPicks,
    Rows,
    Attend,
    /// With so many pairs of elements a lane.
    AttendOne(u32),
    AttendMany(u32),
    /// And so many warps.
    AttendFew(u32, u32),
    Chain,
    /// A link of a chain over several rows, and the chain.
    Several(Product),
    SeveralChain,
    Scan,
    Pick,
}

/// One launch.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub kernel: Kernel,
    /// Which of the kernel's functions, where the number of rows decides.
    pub tile: usize,
    pub shape: Shape,
    pub parameters: Parameters,
    /// Over which rows it runs, and so how its grid and its parameters follow their number.
    pub lead: Lead,
    /// The group, for messages.
    pub group: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Parameters {
    Gemv(Box<Gemv>),
    Gemm(Box<Gemm>),
    Rows(Box<RowList>),
    Experts(Box<Experts>),
    Picks(Picks),
    Attend(Attend),
    AttendOne(Box<AttendOne>),
    AttendFew(Box<AttendFew>),
    Several(Box<Several>),
    Chain(Box<Links>),
    Sample(Sample),
}

/// Launches that are one kernel.
#[derive(Clone, Debug)]
pub(super) struct Links {
    pub chain: Chain,
    /// Products, and of one row attention, in order.
    pub links: Vec<Launch>,
}

/// Launches with the links of chains in their place.
pub(super) fn unchained<'a>(all: impl IntoIterator<Item = &'a Launch>) -> Vec<&'a Launch> {
    let links = |l: &'a Launch| match &l.parameters {
        Parameters::Chain(p) => p.links.iter().collect(),
        _ => vec![l],
    };
    all.into_iter().flat_map(links).collect()
}

impl Launch {
    /// Adapts it to so many rows.
    pub(super) fn set_rows(&mut self, n: u32) {
        match &mut self.parameters {
            Parameters::Gemv(_) => {}
            Parameters::Gemm(p) => {
                p.rows = n;
                self.tile = super::lower::set_tile(p, &mut self.shape);
            }
            Parameters::Rows(_) => self.shape.grid.1 = n,
            Parameters::Experts(p) => self.shape.grid.0 = n.saturating_mul(p.picks),
            Parameters::Picks(p) => super::lower::set_picks(p, n),
            Parameters::Attend(p) if p.split == 0 => {
                self.shape.grid.1 = n;
                super::lower::set_buffers(p, &mut self.shape, self.kernel, n);
            }
            Parameters::Attend(_) => {}
            Parameters::AttendFew(p) => {
                p.many.rows = n;
                self.shape.grid.1 = n;
            }
            Parameters::Chain(p) => p.chain.rows = n,
            Parameters::AttendOne(_) | Parameters::Several(_) => {}
            Parameters::Sample(p) => {
                p.rows = n;
                self.shape.grid.1 = n;
            }
        }
    }
}
