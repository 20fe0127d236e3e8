//! Where a step's time goes: a driver around the driver, which waits after each piece of work while it is asked to.

use candle_core::Result;
use equipoise::device::GpuFacts;
use equipoise::device::driver::{Address, Driver, Launch, MatrixProduct, Program};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What was noted: seconds and pieces of work by name, while it is open.
#[derive(Debug, Default)]
pub struct Book {
    open: AtomicBool,
    /// Tells the head's products from others.
    pub vocabulary: AtomicUsize,
    /// Products of so few outputs, or of so short sums, are an adapter's.
    pub ranks: AtomicUsize,
    parts: Mutex<BTreeMap<&'static str, (f64, usize)>>,
}

/// A driver that notes.
#[derive(Debug)]
pub struct Watch {
    pub driver: Box<dyn Driver>,
    pub book: Arc<Book>,
}

impl Book {
    /// Begins to note, or ends it.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Seconds and pieces of work by name.
    pub fn parts(&self) -> BTreeMap<&'static str, (f64, usize)> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn part(&self, product: &MatrixProduct) -> &'static str {
        let (vocabulary, ranks) = (self.vocabulary.load(Ordering::Relaxed), self.ranks.load(Ordering::Relaxed));
        let (_, n, k) = product.sizes().unwrap_or_default();
        if product.c.stride == vocabulary || product.a.stride == vocabulary {
            "head products"
        } else if product.transpose_a || n.min(k) <= ranks {
            // Of the products of a step only gradients of an adapter have a transposed left side.
            "adapter products"
        } else {
            "frozen products"
        }
    }
}

/// Kernels by what they are for.
fn part_of(kernel: &str) -> &'static str {
    let parts = [
        ("dequantize", "dequantize"),
        ("attention_backward", "attention backward"),
        ("attention_delta", "attention backward"),
        ("attention", "attention"),
        ("rms_norm", "rms_norm"),
        ("swiglu", "swiglu"),
        ("rope", "rope"),
        ("dropout", "dropout"),
        ("cross_entropy", "cross-entropy"),
        ("adamw", "optimizer"),
        ("sum_of_squares", "optimizer"),
    ];
    parts.iter().find(|(prefix, _)| kernel.starts_with(prefix)).map_or("other kernels", |(_, part)| part)
}

impl Watch {
    fn note<T>(&self, part: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.book.open.load(Ordering::Relaxed) {
            return work();
        }
        self.driver.synchronize()?;
        let begun = Instant::now();
        let done = work()?;
        self.driver.synchronize()?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut parts = self.book.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let (sum, count) = parts.entry(part).or_default();
        (*sum, *count) = (*sum + seconds, *count + 1);
        Ok(done)
    }
}

#[expect(unsafe_code, reason = "a driver takes addresses; all of them go on as they came")]
impl Driver for Watch {
    fn facts(&self) -> Result<GpuFacts> {
        self.driver.facts()
    }

    fn segment_bytes(&self, bytes: usize) -> usize {
        self.driver.segment_bytes(bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        self.note("memory from the driver", || self.driver.allocate(bytes))
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: as the caller says.
        unsafe { self.driver.free(address) }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        // SAFETY: as the caller says.
        self.note("copies", || unsafe { self.driver.upload(from, to) })
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        // SAFETY: as the caller says.
        self.note("copies", || unsafe { self.driver.download(from, to) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        self.note("memory from the driver", || self.driver.allocate_pinned(bytes))
    }

    unsafe fn free_pinned(&self, address: Address) {
        // SAFETY: as the caller says.
        unsafe { self.driver.free_pinned(address) }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: as the caller says.
        self.note("copies", || unsafe { self.driver.copy(from, to, bytes) })
    }

    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()> {
        // SAFETY: as the caller says.
        self.note("copies", || unsafe { self.driver.zero(address, bytes) })
    }

    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        // SAFETY: as the caller says.
        self.note(part_of(launch.kernel), || unsafe { self.driver.launch(launch) })
    }

    fn prepare(&self, program: &Program, kernel: &str) -> Result<()> {
        self.driver.prepare(program, kernel)
    }

    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        // SAFETY: as the caller says.
        self.note(self.book.part(product), || unsafe { self.driver.multiply(product) })
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}
