//! A GPU that computes nothing: it gives out addresses, takes all work, and answers zeros. For counting what a step asks of a GPU
//! at the size of a real model, and for timing the CPU's side of comparisons.

use candle_core::Result;
use equipoise::device::GpuFacts;
use equipoise::device::driver::{Address, Driver, Launch, MatrixProduct, Program};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where its memory begins: a multiple of any alignment.
const FIRST: Address = 1 << 40;
/// Bytes of its memory.
const MEMORY: u64 = 80_000_000_000;

/// A driver that computes nothing.
#[derive(Debug, Default)]
pub struct NullGpu {
    /// Bytes that were given out so far; addresses are never given twice.
    given: AtomicU64,
}

#[expect(unsafe_code, reason = "a driver takes addresses; none is used here")]
impl Driver for NullGpu {
    fn facts(&self) -> Result<GpuFacts> {
        Ok(GpuFacts {
            name: "a GPU that computes nothing".into(),
            capability: (9, 0),
            driver: None,
            cuda: (13, 0),
            total: MEMORY,
            free: MEMORY,
            libraries: Vec::new(),
        })
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        Ok(Some(FIRST + self.given.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed)))
    }

    unsafe fn free(&self, _: Address) {}

    unsafe fn upload(&self, _: &[u8], _: Address) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, _: Address, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        self.allocate(bytes).map(Option::unwrap_or_default)
    }

    unsafe fn free_pinned(&self, _: Address) {}

    unsafe fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn zero(&self, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, _: Launch<'_>) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, _: &Program, _: &str) -> Result<()> {
        Ok(())
    }

    unsafe fn multiply(&self, _: &MatrixProduct) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        Ok(())
    }

    fn take_marks(&self) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }
}
