//! To halves and back. What must hold of pointers is said at [the module above](super).

use super::{load_rest, store_rest};
use crate::cpu::lanes::{LANES, Lanes};

#[inline(always)]
pub(super) unsafe fn to_f16<L: Lanes>(x: *const f32, out: *mut u16, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            L::load(x.add(i)).store_half(out.add(i));
        }
        if whole < n {
            let mut rest = [0u16; LANES];
            load_rest::<L>(x.add(whole), n - whole).store_half(rest.as_mut_ptr());
            std::ptr::copy_nonoverlapping(rest.as_ptr(), out.add(whole), n - whole);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn from_f16<L: Lanes>(x: *const u16, out: *mut f32, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's promise: all indices are below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            L::load_half(x.add(i)).store(out.add(i));
        }
        if whole < n {
            let mut rest = [0u16; LANES];
            std::ptr::copy_nonoverlapping(x.add(whole), rest.as_mut_ptr(), n - whole);
            store_rest(L::load_half(rest.as_ptr()), out.add(whole), n - whole);
        }
    }
}
