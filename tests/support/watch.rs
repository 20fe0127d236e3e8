//! What a GPU is asked to do, piece by piece: a driver around the driver. While its book is open it notes each piece of work, with
//! the moments before and behind it on the device, and waits for nothing.

use candle_core::{Result, bail};
use equipoise::device::GpuFacts;
use equipoise::device::driver::{Address, Driver, Launch, MatrixProduct, Number, Program, Work};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What was noted.
#[derive(Debug, Default)]
pub struct Book {
    open: AtomicBool,
    /// Tells the head's products from others.
    pub vocabulary: AtomicUsize,
    /// Products of so few outputs, or of so short sums, are an adapter's.
    pub ranks: AtomicUsize,
    pieces: Mutex<Vec<Piece>>,
    /// What was asked for last, whether the book is open or not.
    last: Mutex<String>,
}

/// What sort of work a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Product,
    Kernel,
    Copy,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Kernel => "kernel",
            Self::Copy => "copy",
        }
    }
}

/// One piece of work.
#[derive(Debug, Clone)]
struct Piece {
    part: &'static str,
    name: String,
    kind: Kind,
    work: Work,
}

/// All pieces of a name.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it is for, in a few words: many pieces share it.
    pub part: &'static str,
    /// The kernel, or the shape of the product.
    pub name: String,
    pub kind: Kind,
    pub count: usize,
    /// On the device; 0 where a driver has no clock.
    pub seconds: f64,
    pub work: Work,
}

/// What goes wrong on purpose, so that what follows can be tried without a broken GPU.
#[derive(Debug)]
pub struct Fault {
    /// The kernel whose launch does it.
    pub kernel: String,
    /// Whether the launch never ends; else it fails, and so does all that follows, as after an illegal address.
    pub hangs: bool,
}

/// A driver that notes.
#[derive(Debug)]
pub struct Watch {
    driver: Box<dyn Driver>,
    book: Arc<Book>,
    fault: Option<Fault>,
    /// Whether the fault has happened.
    lost: AtomicBool,
    /// Whether each buffer is an allocation of its own, so that a tool that looks at allocations sees where a kernel leaves one.
    apart: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    /// Begins to note, or ends it.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// What was asked of the device last.
    pub fn last(&self) -> String {
        lock(&self.last).clone()
    }

    /// What was noted, by name, and forgets it. `marks` are the moments before and behind each piece, from [`Driver::take_marks`].
    pub fn take(&self, marks: &[f64]) -> Vec<Line> {
        let mut lines: BTreeMap<(Kind, String), Line> = BTreeMap::new();
        for (i, piece) in std::mem::take(&mut *lock(&self.pieces)).into_iter().enumerate() {
            let Piece { part, name, kind, work } = piece;
            let line = lines.entry((kind, name.clone())).or_insert_with(|| Line {
                part,
                name,
                kind,
                count: 0,
                seconds: 0.0,
                work: Work::default(),
            });
            line.count += 1;
            line.work.bytes += work.bytes;
            line.work.flop += work.flop;
            if let [before, behind] = marks.get(2 * i..2 * i + 2).unwrap_or_default() {
                line.seconds += behind - before;
            }
        }
        lines.into_values().collect()
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
        ("branch_norm", "rms_norm"),
        ("add_normalized", "rms_norm"),
        ("head_norm", "head_norm"),
        ("swiglu", "swiglu"),
        ("geglu", "geglu"),
        ("rope", "rope"),
        ("dropout", "dropout"),
        ("cross_entropy", "cross-entropy"),
        ("softcap", "cross-entropy"),
        ("largest_entropy", "cross-entropy"),
        ("along", "cross-entropy"),
        ("adamw", "optimizer"),
        ("sum_of_squares", "optimizer"),
    ];
    parts.iter().find(|(prefix, _)| kernel.starts_with(prefix)).map_or("other kernels", |(_, part)| part)
}

/// `m x n x k`, which factors are transposed, their type and that of the sums, and whether it adds to what is there.
fn shape_of(product: &MatrixProduct) -> String {
    let (m, n, k) = product.sizes().unwrap_or_default();
    let letter = |transposed| if transposed { 'T' } else { 'N' };
    let dtype = |number| if number == Number::F32 { "f32" } else { "bf16" };
    let (factors, sums) = (dtype(product.a.number), dtype(product.c.number));
    let types = if factors == sums { factors.to_owned() } else { format!("{factors}, {sums} out") };
    let adds = if product.beta == 0.0 { "" } else { ", added" };
    format!("{m}x{n}x{k} {}{} {types}{adds}", letter(product.transpose_a), letter(product.transpose_b))
}

impl Watch {
    pub fn new(driver: Box<dyn Driver>, book: Arc<Book>, fault: Option<Fault>) -> Self {
        Self { driver, book, fault, lost: AtomicBool::new(false), apart: false }
    }

    /// With an allocation of its own for each buffer, or as it is.
    pub fn with_buffers_apart(self, apart: bool) -> Self {
        Self { apart, ..self }
    }

    /// Lets the fault happen, if it is this kernel's.
    fn may_fail(&self, kernel: &str) -> Result<()> {
        if let Some(fault) = self.fault.as_ref().filter(|fault| fault.kernel == kernel) {
            if fault.hangs {
                loop {
                    std::thread::park();
                }
            }
            self.lost.store(true, Ordering::Relaxed);
        }
        self.still_there()
    }

    fn still_there(&self) -> Result<()> {
        if self.lost.load(Ordering::Relaxed) {
            bail!("CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)");
        }
        Ok(())
    }

    fn note<T>(&self, piece: impl Fn() -> Piece, run: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.book.open.load(Ordering::Relaxed) {
            return run();
        }
        // Two moments for each piece, also for one that fails: else those behind it are taken for others.
        self.driver.mark()?;
        let done = run();
        self.driver.mark()?;
        lock(&self.book.pieces).push(piece());
        done
    }

    /// A copy, which reads and writes so many bytes.
    fn copy<T>(&self, name: &str, bytes: usize, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let work = Work { bytes: bytes as u64, flop: 0 };
        self.note(|| Piece { part: "copies", name: name.to_owned(), kind: Kind::Copy, work }, run)
    }

    fn set_last(&self, name: impl FnOnce() -> String) {
        *lock(&self.book.last) = name();
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

    fn buffers_apart(&self) -> bool {
        self.apart || self.driver.buffers_apart()
    }

    fn workspace_bytes(&self) -> usize {
        self.driver.workspace_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        self.driver.allocate(bytes)
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: as the caller says.
        unsafe { self.driver.free(address) }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        // SAFETY: as the caller says.
        self.copy("to the GPU", from.len(), || unsafe { self.driver.upload(from, to) })
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        // SAFETY: as the caller says.
        self.copy("from the GPU", to.len(), || unsafe { self.driver.download(from, to) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        self.driver.allocate_pinned(bytes)
    }

    unsafe fn free_pinned(&self, address: Address) {
        // SAFETY: as the caller says.
        unsafe { self.driver.free_pinned(address) }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: as the caller says.
        self.copy("within the GPU", 2 * bytes, || unsafe { self.driver.copy(from, to, bytes) })
    }

    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()> {
        // SAFETY: as the caller says.
        self.copy("zeros", bytes, || unsafe { self.driver.zero(address, bytes) })
    }

    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.set_last(|| format!("{} of {:?} blocks", launch.kernel, launch.grid));
        let (part, name, work) = (part_of(launch.kernel), launch.kernel.to_owned(), launch.work);
        let piece = || Piece { part, name: name.clone(), kind: Kind::Kernel, work };
        self.may_fail(launch.kernel)?;
        // SAFETY: as the caller says.
        self.note(piece, || unsafe { self.driver.launch(launch) })
    }

    fn prepare(&self, program: &Program, kernel: &str) -> Result<()> {
        self.set_last(|| format!("compiling {}.cu", program.name));
        self.driver.prepare(program, kernel)
    }

    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        self.set_last(|| format!("cuBLAS {}", shape_of(product)));
        let piece = || Piece {
            part: self.book.part(product),
            name: shape_of(product),
            kind: Kind::Product,
            work: product.work(),
        };
        // SAFETY: as the caller says.
        self.note(piece, || unsafe { self.driver.multiply(product) })
    }

    fn synchronize(&self) -> Result<()> {
        self.still_there()?;
        self.driver.synchronize()
    }

    fn mark(&self) -> Result<()> {
        self.driver.mark()
    }

    fn take_marks(&self) -> Result<Vec<f64>> {
        self.driver.take_marks()
    }
}
