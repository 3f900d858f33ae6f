//! A product with what is done before and after it.
//!
//! What is done to the columns element by element rides along; what must see whole heads (norms,
//! rotations, cache writes) is a launch of its own that reads the product from the workspace. A
//! prologue that is a single norm rides along with one row; any other is a launch that leaves its
//! row in the workspace.

use super::columns::{self, Columns, domains};
use super::product::{Multiplied, Way};
use super::rows::List;
use super::several::Row;
use super::{Lowering, binary_code, count, is_output, unary_code, unplaced};
use crate::cuda::abi::{self, *};
use crate::graph::{Lead, Node, NodeId, Op};
use crate::plan::{Group, GroupKind, origin, weight_ranges};
use crate::{Error, Result};
use std::collections::BTreeMap;

impl Lowering<'_> {
    pub(super) fn linear(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        linear: NodeId,
        epilogue: &[NodeId],
    ) -> Result<()> {
        let x = origin(self.graph, self.arg(linear, 0)?);
        let cols = self.graph.ty(x).width();
        let domains = domains(self.graph, linear, epilogue).ok_or_else(|| unplaced(linear))?;
        let ranges: Vec<(usize, usize)> = weight_ranges(self.graph, linear).collect();
        let whole = self.put(linear)?;
        let raw_stride = count(columns::raw(&domains))?;
        let mut raw_at = self.raw();
        // What is multiplied: parts with their epilogue, by kernel.
        let mut products: Vec<Multiplied> = Vec::new();
        let mut later: Vec<(Columns, Vec<Operand>)> = Vec::new();
        for d in domains {
            let mut parts = Vec::new();
            for &p in &d.parts {
                parts.push(self.matrix(self.arg(linear, p + 1)?)?);
            }
            // Where each part of a merged product goes as such.
            let wholes = d
                .parts
                .iter()
                .map(|&p| whole.map(|w| Operand { at: w.at + ranges[p].0 as u64 * 4, ..w }));
            let wholes: Vec<Option<Operand>> = wholes.collect();
            if d.rides_along() {
                let (e, swap) = self.epilogue(&d, &wholes)?;
                if swap {
                    parts.reverse();
                }
                let product = d.layouts[0].product().ok_or_else(|| unplaced(linear))?;
                products.push((product, parts, e));
                continue;
            }
            let mut operands = Vec::new();
            for part in parts {
                let o = Operand { at: raw_at, place: abi::ROWS, n: raw_stride };
                raw_at += part.0.rows as u64 * 4;
                let e = Epilogue { form: STORE, out: o.at, out_stride: o.n, ..Epilogue::default() };
                let product = part.0.product().ok_or_else(|| unplaced(linear))?;
                products.push((product, vec![part], e));
                operands.push(o);
            }
            later.push((d, operands));
        }
        products.sort_by_key(|p| p.0);

        let (row, way) = self.rows_for(lead, prologue, (linear, x), &products)?;
        for same in products.chunk_by(|a, b| a.0 == b.0) {
            for some in same.chunks(MAX_DOMAINS) {
                self.product(lead, way, cols, row, some)?;
            }
        }
        if whole.is_none() {
            self.heads = self.heads_of(&later)?;
            if self.heads.is_some() {
                return Ok(());
            }
        }
        self.finish(lead, later, whole, &ranges)
    }

    /// The rows of a product, and how they go through it: as they are where a norm at most is to be done on the
    /// way, or made by a launch.
    fn rows_for(
        &mut self,
        lead: Lead,
        prologue: &[NodeId],
        (linear, x): (NodeId, NodeId),
        products: &[Multiplied],
    ) -> Result<(Row, Way)> {
        let one = self.most(lead) == 1;
        let cols = self.graph.ty(x).width();
        let (mut made, mut row) = (&[][..], None);
        if self.few(lead) {
            row = self.as_it_is(prologue, x)?;
            if row.is_none()
                && let [before @ .., norm] = prologue
                && self.plan.place(origin(self.graph, self.arg(*norm, 0)?)).is_some()
            {
                // A launch does what comes before the norm.
                (made, row) = (before, self.as_it_is(std::slice::from_ref(norm), x)?);
            }
        }
        if let Some(row) = row
            && (one || self.are_links(lead, cols, row, products)?)
        {
            if !made.is_empty() {
                self.rows(lead, made)?;
            }
            return Ok((row, if one { Way::One } else { Way::Several }));
        }
        let mut row = Row::default();
        let factored = self.factor(prologue)?.filter(|_| !one);
        // What the launch before leaves, as it is or through a norm.
        let left = match (prologue, factored) {
            ([], _) if !one => Some((x, 0)),
            ([norm], Some((weights, _))) => {
                Some((origin(self.graph, self.arg(*norm, 0)?), weights))
            }
            _ => None,
        };
        let eps = factored.map_or(0.0, |(_, eps)| eps);
        if let Some((x, weights)) = left
            && let Some(squares) = self.left_split(lead, linear, x, cols, weights)?
        {
            row.norm = (squares, eps);
            return Ok((row, Way::Many));
        }
        let mut list = List::new();
        // An embedding and what is done to each of its columns is made by columns, if the norm behind it leaves its factor.
        let before = prologue.split_last().map_or(&[][..], |(_, before)| before);
        let by_columns = factored.is_some() && self.bases.few > 0 && self.apart(before);
        let unit = if by_columns { WG_BLOCK } else { 0 };
        let known = self.list(&mut list, prologue, unit, BTreeMap::new(), &[x])?;
        let a = self.operand(&known, x)?;
        let len = if by_columns { unit } else { cols };
        let mut op = RowOp { what: R_PUT, len: count(len)?, a, ..RowOp::default() };
        if one {
            row.row = Operand { at: self.bases.x, place: abi::ROWS, n: count(cols)? };
            op.b = row.row;
        } else {
            self.split(self.most(lead), linear, cols, &mut op)?;
        }
        if factored.is_some() {
            row.norm = (self.factored(lead, cols, &mut list)?, eps);
        }
        if by_columns {
            op.n0 = op.len;
        }
        list.ops.push(op);
        Self::by_units(&mut list, unit, cols / len)?;
        self.push_list(lead, list)?;
        Ok((row, if one { Way::One } else { Way::Many }))
    }

    /// The row that there is before a prologue of a norm at most, and that norm.
    fn as_it_is(&self, prologue: &[NodeId], x: NodeId) -> Result<Option<Row>> {
        let (reads, id) = match prologue {
            [] => {
                let normed = self.left_to_readers(x)?;
                let (row, norm) = normed.map_or_else(|| Ok((self.value(x)?, (0, 0.0))), Ok)?;
                return Ok(Some(Row { row, norm }));
            }
            [id] => (*id, *id),
            // The only row is the selected one.
            [select, id]
                if self.plan.limits().rows == 1
                    && matches!(self.graph.node(*select).op, Op::Select(_))
                    && self.put(*select)?.is_none() =>
            {
                (*select, *id)
            }
            _ => return Ok(None),
        };
        let Some(norm) = self.plain_norm(id)? else { return Ok(None) };
        Ok(Some(Row { row: self.value(origin(self.graph, self.arg(reads, 0)?))?, norm }))
    }

    /// The weights of a norm over whole rows, and its constant.
    fn whole_norm(&self, id: NodeId) -> Result<Option<(u64, f32)>> {
        match (&self.graph.node(id).op, self.graph.node(id).args.as_slice()) {
            (Op::RmsNorm(op), &[_, weights]) if self.graph.ty(id).dims.len() == 1 => {
                Ok(Some((self.address(weights)?, op.eps)))
            }
            _ => Ok(None),
        }
    }

    /// The same of one whose rows nobody finds in memory.
    fn plain_norm(&self, id: NodeId) -> Result<Option<(u64, f32)>> {
        match self.put(id)? {
            Some(_) => Ok(self.left_to_readers(id)?.map(|(_, norm)| norm)),
            None => self.whole_norm(id),
        }
    }

    /// Of a norm of the only row that several products read, and nobody else: the row before it, the norm's weights and its
    /// constant. Each of them norms that row itself, and there is no launch between.
    pub(super) fn left_to_readers(&self, id: NodeId) -> Result<Option<(Operand, (u64, f32))>> {
        let graph = self.graph;
        let Some(norm) = self.whole_norm(id)? else { return Ok(None) };
        if self.plan.limits().rows != 1 || self.put(id)?.is_none() {
            return Ok(None);
        }
        let x = origin(graph, self.arg(id, 0)?);
        let reads = |node: &Node, value| node.args.iter().any(|&a| origin(graph, a) == value);
        // Only as their rows, and behind nothing else.
        let itself = |group: &Group| match &group.kind {
            GroupKind::Linear { prologue, linear, .. } => {
                let others = group.nodes().filter(|&n| n != id && n != *linear);
                let row = |n: NodeId| graph.node(n).args.first().map(|&a| origin(graph, a));
                let weights = graph.node(*linear).args.iter().skip(1);
                let first = matches!(graph.node(*linear).op, Op::Linear(_));
                let alone = prologue.is_empty() || prologue.as_slice() == [id];
                (row(*linear) == Some(id) && (alone || !first))
                    && others.chain(weights.copied()).all(|n| n != id && !reads(graph.node(n), id))
            }
            _ => false,
        };
        let (mut made, mut last, mut needed) = (false, 0, 0);
        for (i, group) in self.plan.groups().iter().enumerate() {
            let has = group.nodes().any(|n| n == id);
            if has || group.nodes().any(|n| reads(graph.node(n), id)) {
                if !itself(group) {
                    return Ok(None);
                }
                last = i;
            }
            if let GroupKind::Linear { prologue, .. } = &group.kind {
                made |= prologue.as_slice() == [id];
            }
            if group.nodes().any(|n| n != id && reads(graph.node(n), x)) {
                needed = i;
            }
        }
        // The row before it must be there as long.
        if !made || is_output(graph, id) || needed < last || self.plan.place(x).is_none() {
            return Ok(None);
        }
        Ok(Some((self.value(x)?, norm)))
    }

    /// The norm that ends a prologue, if its factor is for the sums of a product of more rows than one: so it is on sm_90
    /// wherever columns are whole blocks, whoever makes the rows.
    fn factor(&self, prologue: &[NodeId]) -> Result<Option<(u64, f32)>> {
        let whole = |id: &NodeId| self.graph.ty(*id).width().is_multiple_of(WG_BLOCK);
        match prologue.last() {
            Some(norm) if self.chip.hopper && whole(norm) => self.plain_norm(*norm),
            _ => Ok(None),
        }
    }

    /// Byte code for what becomes of a domain's columns, or a straight line where there is one, and
    /// whether its two parts change places.
    fn epilogue(&self, d: &Columns, wholes: &[Option<Operand>]) -> Result<(Epilogue, bool)> {
        let mut ops: Vec<ElementOp> = Vec::new();
        let mut known: BTreeMap<NodeId, Operand> = BTreeMap::new();
        let put = |a, b| ElementOp { what: PUT, a, b, ..ElementOp::default() };
        for (i, values) in d.values.iter().enumerate() {
            let register = Operand::register(count(i)?);
            if let Some(Some(b)) = wholes.get(i) {
                ops.push(put(register, *b));
            }
            for &id in values {
                known.insert(id, register);
                if let (Some(b), Op::Slice(_)) = (self.put(id)?, &self.graph.node(id).op) {
                    ops.push(put(register, b));
                }
            }
        }
        // The kernel puts a value into both of the first two registers.
        for (next, &id) in (2..).zip(&d.nodes) {
            let node = self.graph.node(id);
            let a = self.operand(&known, self.arg(id, 0)?)?;
            let mut op = ElementOp { to: next, a, ..ElementOp::default() };
            match &node.op {
                Op::Unary(unary) => {
                    op.what = UNARY;
                    let d;
                    (op.kind, op.c, d) = unary_code(unary.kind);
                    op.b = Operand::constant(d);
                }
                Op::Binary(binary) => {
                    op.what = BINARY;
                    op.kind = binary_code(binary.kind);
                    op.b = self.operand(&known, self.arg(id, 1)?)?;
                }
                _ => return Err(unplaced(id)),
            }
            ops.push(op);
            known.insert(id, Operand::register(next));
            if let Some(b) = self.put(id)? {
                ops.push(put(Operand::register(next), b));
            }
        }
        let register = |o: &Operand, n| o.place == abi::REGISTER && o.n == n;
        let mut e = Epilogue { form: CODE, count: count(ops.len())?, ..Epilogue::default() };
        let mut swap = false;
        match ops.as_slice() {
            [p] if p.what == PUT && register(&p.a, 0) && d.parts.len() == 1 => {
                (e.form, e.out, e.out_stride) = (STORE, p.b.at, p.b.n);
            }
            [add, p]
                if (add.what, add.kind, p.what) == (BINARY, 0, PUT)
                    && d.parts.len() == 1
                    && register(&add.a, 0) != register(&add.b, 0) =>
            {
                (e.form, e.out, e.out_stride) = (RESIDUAL, p.b.at, p.b.n);
                e.residual = if register(&add.a, 0) { add.b } else { add.a };
            }
            [act, mul, p]
                if (act.what, mul.what, mul.kind, p.what) == (UNARY, BINARY, 1, PUT)
                    && d.parts.len() == 2
                    && act.a.place == abi::REGISTER
                    && act.a.n < 2
                    && (register(&mul.a, 2) && register(&mul.b, 1 - act.a.n)
                        || register(&mul.b, 2) && register(&mul.a, 1 - act.a.n)) =>
            {
                (e.form, e.kind, e.c, e.d) = (GATED, act.kind, act.c, f32::from_bits(act.b.n));
                (e.out, e.out_stride) = (p.b.at, p.b.n);
                swap = act.a.n == 1;
            }
            _ => {
                if ops.len() > MAX_OPS {
                    return Err(Error::Plan("its epilogue is too long".to_string()));
                }
                e.ops.iter_mut().zip(&ops).for_each(|(to, from)| *to = *from);
            }
        }
        Ok((e, swap))
    }

    /// Launches the epilogues that must see whole heads.
    fn finish(
        &mut self,
        lead: Lead,
        domains: Vec<(Columns, Vec<Operand>)>,
        whole: Option<Operand>,
        ranges: &[(usize, usize)],
    ) -> Result<()> {
        let mut list = List::new();
        for (d, operands) in domains {
            let unit = d.unit(self.graph, self.most(lead) == 1);
            let mut fresh = self.columns(&d, unit, &operands, whole, ranges, &list.tables)?;
            let full = list.ops.len() + fresh.ops.len() > MAX_ROW_OPS
                || list.jobs.len() == MAX_JOBS
                || fresh.tables.len() > MAX_TABLES;
            if full && !list.jobs.is_empty() {
                self.push_list(lead, std::mem::replace(&mut list, List::new()))?;
                fresh = self.columns(&d, unit, &operands, whole, ranges, &[])?;
            }
            list.jobs.push(Job {
                first_block: count(list.blocks)?,
                unit: count(unit)?,
                op: count(list.ops.len())?,
                ops: count(fresh.ops.len())?,
            });
            list.ops.append(&mut fresh.ops);
            list.fours = list.fours.max(fresh.fours);
            list.tables = fresh.tables;
            list.blocks += d.len / unit;
        }
        if list.jobs.is_empty() { Ok(()) } else { self.push_list(lead, list) }
    }

    /// The epilogue of a unit of columns, whose tables join others.
    fn columns(
        &self,
        d: &Columns,
        unit: usize,
        operands: &[Operand],
        whole: Option<Operand>,
        ranges: &[(usize, usize)],
        tables: &[Matrix],
    ) -> Result<List> {
        let (mut list, mut known) = (List::new(), BTreeMap::new());
        list.tables = tables.to_vec();
        let put = |a, b| -> Result<RowOp> {
            Ok(RowOp { what: R_PUT, len: count(unit)?, a, b, ..RowOp::default() })
        };
        for (i, values) in d.values.iter().enumerate() {
            let a = operands[i];
            if let Some(w) = whole {
                let at = w.at + ranges[d.parts[i]].0 as u64 * 4;
                list.ops.push(put(a, Operand { at, ..w })?);
            }
            for &id in values {
                known.insert(id, a);
                if let (Some(b), Op::Slice(_)) = (self.put(id)?, &self.graph.node(id).op) {
                    list.ops.push(put(a, b)?);
                }
            }
        }
        self.list(&mut list, &d.nodes, unit, known, &[])?;
        Ok(list)
    }
}
