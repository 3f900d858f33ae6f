//! One launch of a product: of one row the streaming kernel, of more rows the tensor-core one.

use super::several::Row;
use super::tiles::{gemm_shared, split_size, stretches};
use super::{Chip, Lowering, count, too_large};
use crate::cuda::abi::*;
use crate::cuda::layout::{Layout, Product};
use crate::cuda::program::{Kernel, Parameters};
use crate::graph::Lead;
use crate::{Error, Result};

/// How a product of one row goes through its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    team: usize,
    batch: usize,
    passes: usize,
    wide: usize,
    /// Bytes of a page.
    page: usize,
}

/// What pages of several panels are filled up to; in a chain, whose ring is larger and whose warps multiply more panels
/// at a time.
const PAGE: usize = 20 << 10;
const LINK_PAGE: usize = 40 << 10;

/// How a product takes its row: alone, as a link, or as a link whose row comes as integers.
#[derive(Clone, Copy, PartialEq)]
enum Taken {
    Alone,
    Linked,
    Integers,
}

/// Units of a warp, of a row that comes as integers.
pub(super) const INTEGERS: usize = 32;

/// Panels of a block for which it is worth making bits of a row.
const FEWEST_COUNTED: usize = 16;

impl Stream {
    /// For parts that share a ring; `None` if two pages do not fit.
    pub(super) fn of(chip: &Chip, parts: &[Layout]) -> Option<Stream> {
        let parts: Vec<Matrix> = parts.iter().map(|l| l.matrix(0)).collect();
        Stream::with(chip.stream_shared(), &parts, Taken::Alone)
    }

    /// In so much memory.
    fn with(room: usize, parts: &[Matrix], row: Taken) -> Option<Stream> {
        let first = parts.first()?;
        let (link, rounded) = (row != Taken::Alone, row == Taken::Integers);
        let units = first.units as usize;
        // Units that a warp has at a time.
        let wide = match first.lo {
            0 => 32,
            _ if rounded => INTEGERS,
            // More bits would be more registers than there are.
            bits if link && units > 8 * WARPS && bits + first.hi <= 4 => 16,
            _ => 8,
        };
        let team = units.div_ceil(wide).next_power_of_two().min(WARPS);
        let passes = units.div_ceil(team * wide);
        let slice = |m: &Matrix| match passes {
            1 => m.panel_bytes as usize,
            _ => team * wide / m.span_units() * m.span_bytes as usize,
        };
        let slice = parts.iter().map(slice).max()?;
        let most = if link { LINK_PAGE.min(room / 256 * 128) } else { PAGE };
        let mut batch = (most / slice).clamp(1, 16);
        if rounded && batch > 2 {
            // Two panels are multiplied at a time.
            batch &= !1;
        }
        let page = (batch * slice).next_multiple_of(128);
        (page <= room / 2).then_some(Stream { team, batch, passes, wide, page })
    }

    /// Tells a product of it.
    fn tell(&self, p: &mut Gemv) -> Result<()> {
        p.team = self.team.ilog2();
        (p.batch, p.passes) = (count(self.batch)?, count(self.passes)?);
        p.wide = count(self.wide)?;
        Ok(())
    }
}

/// Adapts a product to a chain's ring, if there is room.
pub(super) fn chained(p: &mut Gemv, room: usize) -> Option<()> {
    let parts: Vec<Matrix> = Matrix::there(&p.part).copied().collect();
    let row = if p.takes_integers == 0 { Taken::Linked } else { Taken::Integers };
    let stream = Stream::with(room, &parts, row)?;
    stream.tell(p).ok()
}

/// Columns of a product: the kernel, the weights and where they are, and what becomes of them.
pub(super) type Multiplied = (Product, Vec<(Layout, u64)>, Epilogue);

/// How rows go through a product: one, several in a chain, or as many as there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    One,
    Several,
    Many,
}

/// The columns of a product, by tiles.
pub(super) struct Dealt {
    pub first: [u32; MAX_DOMAINS + 1],
    pub domain: [Domain; MAX_DOMAINS],
    pub part: [Matrix; 2 * MAX_DOMAINS],
}

impl Lowering<'_> {
    /// Deals columns out, in tiles of so many outputs, of all parts of a domain together; by panels if that is 0.
    pub(super) fn dealt(&self, domains: &[Multiplied], tile: usize) -> Result<Dealt> {
        let mut dealt = Dealt {
            first: [0; MAX_DOMAINS + 1],
            domain: [Domain::default(); MAX_DOMAINS],
            part: [Matrix::default(); 2 * MAX_DOMAINS],
        };
        let (mut parts, mut end) = (0, 0);
        for (i, (_, matrices, epilogue)) in domains.iter().enumerate() {
            let d = &mut dealt.domain[i];
            d.parts = count(matrices.len())?;
            d.epilogue = *epilogue;
            for (j, (layout, at)) in matrices.iter().enumerate() {
                dealt.part[parts] = layout.matrix(*at);
                d.part[j] = count(parts)?;
                parts += 1;
            }
            let alike = matrices
                .windows(2)
                .all(|m| Matrix { data: 0, ..m[0].0.matrix(0) } == m[1].0.matrix(0));
            d.alike = u32::from(alike);
            let outputs = matrices.first().map_or(0, |m| m.0.rows);
            let step = if tile == 0 { PANEL } else { tile / matrices.len() };
            dealt.first[i] = end;
            end += count(outputs.div_ceil(step))?;
        }
        for f in &mut dealt.first[domains.len()..] {
            *f = end;
        }
        Ok(dealt)
    }

    /// One launch of a product.
    pub(super) fn product(
        &mut self,
        lead: Lead,
        way: Way,
        cols: usize,
        x: Row,
        domains: &[Multiplied],
    ) -> Result<()> {
        let Some((product, ..)) = domains.first() else { return Ok(()) };
        let layouts: Vec<Layout> = domains.iter().flat_map(|d| d.1.iter().map(|p| p.0)).collect();
        if way == Way::Several {
            let p = Parameters::Several(Box::new(self.several(cols, x, domains)?));
            let grid = (self.chip.processors, 1);
            return self.push(Kernel::Several(*product), grid, SEVERAL_THREADS, 0, lead, p);
        }
        let one = way == Way::One;
        let tile = if self.chip.hopper { WG_M } else { TILE_N };
        let Dealt { first, domain, mut part } = self.dealt(domains, if one { 0 } else { tile })?;
        let (domains, end) = (count(domains.len())?, first[MAX_DOMAINS]);
        if one {
            let panels: usize = layouts.iter().map(|l| l.panels).sum();
            if panels >= FEWEST_COUNTED * self.chip.processors as usize
                && layouts.iter().all(Layout::counts)
            {
                part.iter_mut().take(layouts.len()).for_each(|m| m.halves = 0);
            }
            let stream = Stream::of(self.chip, &layouts)
                .ok_or_else(|| Error::Plan("its rows are too wide".to_string()))?;
            let mut p = Gemv {
                x: x.row.at,
                norm: x.norm.0,
                eps: x.norm.1,
                cols: count(cols)?,
                domains,
                first,
                domain,
                part,
                ..Gemv::default()
            };
            stream.tell(&mut p)?;
            // As many whole pages as there is room for.
            let room = self.chip.stream_shared();
            let shared = room / stream.page * stream.page;
            p.ring = count(shared)?;
            let grid = (end.clamp(1, self.chip.processors.max(1)), 1);
            let p = Parameters::Gemv(Box::new(p));
            return self.push(Kernel::Gemv(*product), grid, GEMV_THREADS, shared, lead, p);
        }
        let (cols, rows) = split_size(self.chip, cols, self.most(lead)).ok_or_else(too_large)?;
        let mut p = Gemm {
            high: self.split_at,
            low: self.bases.low,
            stride: count(cols)?,
            domains,
            first,
            domain,
            part,
            squares: x.norm.0,
            eps: x.norm.1,
            ..Gemm::default()
        };
        if self.chip.hopper {
            p.groups = count(rows / WG_ROWS)?;
            p.sums = if layouts.iter().any(Layout::adds) { self.sums_at(cols, rows) } else { 0 };
            (p.stretches, p.each) = (stretches(self.chip, end, cols, p.part[0].lo != 0), 1);
        }
        let p = Parameters::Gemm(Box::new(p));
        let shared = gemm_shared(self.chip, *product);
        self.push(Kernel::Gemm(*product), (1, end), 256, shared, lead, p)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::format::Format;

    #[test]
    fn a_link_goes_through_long_rows_in_fewer_passes() {
        let stream = |format, cols, row| {
            let parts = [Layout::of(format, 2048, cols).unwrap().matrix(0)];
            let s = Stream::with(120 << 10, &parts, row).unwrap();
            assert!(2 * s.page <= 120 << 10);
            assert!(s.passes * s.team * s.wide >= parts[0].units as usize);
            (s.wide, s.team, s.passes, s.batch)
        };
        assert_eq!(stream(Format::Q4_0, 8192, Taken::Alone), (8, 8, 4, 4));
        assert_eq!(stream(Format::Q4_0, 8192, Taken::Linked), (16, 8, 2, 4));
        assert_eq!(stream(Format::Q4_0, 2048, Taken::Linked), (8, 8, 1, 8));
        assert_eq!(stream(Format::Q8_0, 8192, Taken::Linked), (8, 8, 4, 4));
        assert_eq!(stream(Format::BF16, 8192, Taken::Linked), (32, 8, 4, 2));
        // Integers are gone through once, two panels at a time where a page has them.
        assert_eq!(stream(Format::Q4_0, 8192, Taken::Integers), (32, 8, 1, 2));
        assert_eq!(stream(Format::Q2_K, 8192, Taken::Integers), (32, 8, 1, 2));
        assert_eq!(stream(Format::Q8_0, 8192, Taken::Integers), (32, 8, 1, 1));
    }

    #[test]
    fn bits_are_counted_where_many_outputs_have_few_scales() {
        use crate::cuda::lower::tests::lowered;
        use crate::cuda::program::Launch;
        use crate::graph::{Builder, MemoryWeights};
        use crate::plan::Limits;
        let halves = |formats: [Format; 2], outputs: usize| {
            let mut w = MemoryWeights::new();
            w.insert("x.weight", &[4, 256], &[0.0; 4 * 256]).unwrap();
            for (name, format) in ["gate", "up"].into_iter().zip(formats) {
                let bytes = vec![0; outputs * format.row_bytes(256).unwrap()];
                w.insert_bytes(&format!("{name}.weight"), format, &[outputs, 256], bytes).unwrap();
            }
            let mut b = Builder::new(&w);
            let x = b.embed("x").unwrap();
            let gate = b.linear(x, "gate").unwrap();
            let gate = b.silu(gate).unwrap();
            let up = b.linear(x, "up").unwrap();
            let y = b.mul(gate, up).unwrap();
            b.output(y);
            let limits = Limits { rows: 1, outs: 1, slots: 1, context: 8 };
            let (_, made) = lowered(&b.finish(), 90, limits, |bases| bases);
            let of = |l: &Launch| match &l.parameters {
                Parameters::Gemv(p) => Some([p.part[0].halves, p.part[1].halves]),
                _ => None,
            };
            made.iter().find_map(of).unwrap()
        };
        let (some, many) = (16 * 132 * 2 - 4, 16 * 132 * 2);
        assert_eq!(halves([Format::Q1_0; 2], many), [0, 0]);
        assert_eq!(halves([Format::TQ2_0, Format::TQ1_0], many), [0, 0]);
        assert_eq!(halves([Format::TQ2_0; 2], some), [1, 1]);
        // 64 columns have a scale.
        assert_eq!(halves([Format::TQ2_0, Format::Q2_0], many), [1, 1]);
        assert_eq!(halves([Format::Q4_0; 2], many), [1, 1]);
    }
}
