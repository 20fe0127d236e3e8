//! A GPU that is none: the kernels, compiled by the machine's C++ compiler (`tests/cuda`), in the CPU's memory.
//!
//! What the library does on a GPU, all of it but the driver's own functions, so runs in a test. It is stricter than a GPU: fresh
//! memory is NaN, each buffer has a guard behind it, and what a kernel may not touch is seen when it is.

use candle_core::{Result, bail};
use equipoise::device::driver::{Address, Argument, Driver, Launch, Matrix, MatrixProduct, Number, Program};
use equipoise::device::{Device, Gpu, GpuFacts};
use half::bf16;
use libloading::{Library, Symbol};
use rayon::prelude::*;
use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Bytes behind each block that must stay as they are.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0x5a;
/// Of `f32` and of `bf16` a NaN.
const FRESH_BYTE: u8 = 0xff;

type HostLaunch = unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, *mut *mut c_void) -> c_int;

/// Switches of a [`HostGpu`] that a test keeps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes that are given out at most.
    pub memory: Arc<AtomicUsize>,
    /// How many kernels were launched, and matrices multiplied.
    pub launches: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct HostGpu {
    blocks: Mutex<BTreeMap<Address, usize>>,
    pinned: Mutex<BTreeMap<Address, usize>>,
    limits: Limits,
    marks: Mutex<Vec<Instant>>,
}

/// A GPU for a test, and its switches; `None`, said aloud, without a C++ compiler.
pub fn host_gpu() -> Option<(Device, Limits)> {
    let (driver, limits) = host_driver()?;
    Some((Device::Gpu(Gpu::new(driver)), limits))
}

/// The driver of [`host_gpu`].
#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
pub fn host_driver() -> Option<(Box<dyn Driver>, Limits)> {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").is_dir() {
        eprintln!("skipped: the sources that this program was built from are not there");
        return None;
    }
    if compiler().is_none() {
        eprintln!("skipped: no C++ compiler (c++, g++, clang++) to run the kernels of a GPU on the CPU");
        return None;
    }
    let limits = Limits { memory: Arc::new(AtomicUsize::new(usize::MAX)), launches: Arc::default() };
    let driver =
        HostGpu { blocks: Mutex::default(), pinned: Mutex::default(), limits: limits.clone(), marks: Mutex::default() };
    Some((Box::new(driver), limits))
}

fn compiler() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&'static str>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let works = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
        ["c++", "g++", "clang++"].into_iter().find(works)
    })
}

/// The kernels of a program as a library: built once, by whoever needs it first.
fn library(program: &Program) -> Arc<Library> {
    static LOADED: Mutex<Option<HashMap<String, Arc<Library>>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    let library = loaded.entry(format!("{:?}", program.key())).or_insert_with(|| Arc::new(load(&build(program))));
    library.clone()
}

fn load(path: &Path) -> Library {
    // SAFETY: the library has kernels and what runs them, and no constructors that could do harm.
    #[expect(unsafe_code, reason = "a library is code")]
    unsafe {
        Library::new(path).unwrap()
    }
}

/// The library's file: kept between runs under a name that tells its sources.
fn build(program: &Program) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = root.join("tests/cuda");
    let shell = std::fs::read_to_string(tests.join(format!("{}.cpp", program.name))).unwrap();
    let host = std::fs::read_to_string(tests.join("host.h")).unwrap();
    let key = blake3::hash([program.text(), shell, host].concat().as_bytes()).to_hex();
    // Cargo names this folder to tests and benchmarks alone.
    let folder = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let file = folder.join(format!("lib{}-{}.so", program.name, &key[..16]));
    if file.exists() {
        return file;
    }
    let aside = folder.join(format!("{}-{}-{}.tmp", program.name, &key[..16], std::process::id()));
    let mut command = Command::new(compiler().unwrap());
    command.args(["-std=c++17", "-O2", "-pthread", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]);
    command.arg("-Wno-unknown-pragmas").arg("-I").arg(root.join("src/ops/cuda/kernels")).arg("-I").arg(&tests);
    command.args(program.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    command.arg(tests.join(format!("{}.cpp", program.name))).arg("-o").arg(&aside);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&aside, &file).unwrap();
    file
}

/// That a launch of attention has the threads and the shared memory that the kernel was written for.
fn check_attention_sizes(library: &Library, launch: &Launch<'_>) {
    let mut sizes = [0u32; 14];
    // SAFETY: the library of attention has this function, which writes 14 numbers.
    #[expect(unsafe_code, reason = "a library is code")]
    unsafe {
        library.get::<unsafe extern "C" fn(*mut u32)>(b"host_sizes\0").unwrap()(sizes.as_mut_ptr());
    };
    let of_type = if launch.kernel.ends_with("bf16") { &sizes[7..] } else { &sizes[..7] };
    let pass = ["attention_f", "attention_backward_queries", "attention_backward_keys"];
    let name = launch.kernel.replace("attention_bf16", "attention_f");
    let Some(pass) = pass.iter().position(|pass| name.starts_with(pass)) else { return };
    assert_eq!((launch.block, launch.shared_bytes), (of_type[0], of_type[4 + pass]), "{}", launch.kernel);
}

impl HostGpu {
    /// That all guards are whole.
    fn check_guards(&self, after: &str) {
        for (&address, &bytes) in self.blocks.lock().unwrap().iter() {
            let guard = memory(address + bytes as Address, GUARD);
            assert!(guard.iter().all(|byte| *byte == GUARD_BYTE), "{after} wrote behind a buffer of {bytes} bytes");
        }
    }

    /// That an address range is within one block.
    fn check(&self, address: Address, bytes: usize, what: &str) {
        let all = [self.blocks.lock().unwrap(), self.pinned.lock().unwrap()];
        let block = all.iter().filter_map(|blocks| blocks.range(..=address).next_back()).max();
        let fits = block.is_some_and(|(first, size)| address + bytes as Address <= first + *size as Address);
        assert!(fits, "{what} of {bytes} bytes at {address:#x} is in no buffer");
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + GUARD, 256).unwrap()
}

#[expect(unsafe_code, reason = "a device's memory is known by address")]
fn memory<'a>(address: Address, bytes: usize) -> &'a mut [u8] {
    // SAFETY: callers ask for what `allocate` gave.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) }
}

fn number(matrix: &Matrix, row: usize, column: usize) -> f32 {
    let place = row * matrix.stride + column;
    let bytes = |size: usize| &*memory(matrix.address + (place * size) as Address, size);
    match matrix.number {
        Number::F32 => f32::from_le_bytes(bytes(4).try_into().unwrap()),
        Number::Bf16 => bf16::from_le_bytes(bytes(2).try_into().unwrap()).to_f32(),
    }
}

fn set_number(matrix: &Matrix, row: usize, column: usize, x: f32) {
    let place = row * matrix.stride + column;
    match matrix.number {
        Number::F32 => memory(matrix.address + 4 * place as Address, 4).copy_from_slice(&x.to_le_bytes()),
        Number::Bf16 => {
            memory(matrix.address + 2 * place as Address, 2).copy_from_slice(&bf16::from_f32(x).to_le_bytes());
        }
    }
}

/// The numbers of a matrix, or of its transposed, row by row.
fn numbers(matrix: &Matrix, transposed: bool) -> Vec<f32> {
    let (rows, columns) = if transposed { (matrix.columns, matrix.rows) } else { (matrix.rows, matrix.columns) };
    let at = |i: usize| (i / columns, i % columns);
    let read = |(row, column)| if transposed { number(matrix, column, row) } else { number(matrix, row, column) };
    (0..rows * columns).map(|i| read(at(i))).collect()
}

#[expect(unsafe_code, reason = "a device's memory is known by address")]
impl Driver for HostGpu {
    fn facts(&self) -> Result<GpuFacts> {
        let taken: usize = self.blocks.lock().unwrap().values().sum();
        let limit = self.limits.memory.load(Ordering::Relaxed);
        let total = limit.min(1 << 30);
        Ok(GpuFacts {
            name: "kernels on the CPU".into(),
            capability: (8, 0),
            driver: None,
            cuda: (13, 0),
            total: total as u64,
            free: total.saturating_sub(taken) as u64,
            libraries: Vec::new(),
        })
    }

    fn segment_bytes(&self, bytes: usize) -> usize {
        bytes
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        let mut blocks = self.blocks.lock().unwrap();
        if blocks.values().sum::<usize>() + bytes > self.limits.memory.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // SAFETY: the layout has a size.
        let address = unsafe { std::alloc::alloc(layout(bytes)) } as Address;
        memory(address, bytes).fill(FRESH_BYTE);
        memory(address + bytes as Address, GUARD).fill(GUARD_BYTE);
        blocks.insert(address, bytes);
        Ok(Some(address))
    }

    unsafe fn free(&self, address: Address) {
        let bytes = self.blocks.lock().unwrap().remove(&address).expect("what is freed was given");
        // SAFETY: `allocate` gave it with this layout.
        unsafe { std::alloc::dealloc(address as *mut u8, layout(bytes)) };
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        self.check(to, from.len(), "an upload");
        memory(to, from.len()).copy_from_slice(from);
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.check(from, to.len(), "a download");
        to.copy_from_slice(memory(from, to.len()));
        Ok(())
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        // SAFETY: the layout has a size.
        let address = unsafe { std::alloc::alloc(layout(bytes)) } as Address;
        memory(address, bytes).fill(FRESH_BYTE);
        self.pinned.lock().unwrap().insert(address, bytes);
        Ok(address)
    }

    unsafe fn free_pinned(&self, address: Address) {
        let bytes = self.pinned.lock().unwrap().remove(&address).expect("what is freed was given");
        // SAFETY: `allocate_pinned` gave it with this layout.
        unsafe { std::alloc::dealloc(address as *mut u8, layout(bytes)) };
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.check(from, bytes, "a copy");
        self.check(to, bytes, "a copy");
        let copied = memory(from, bytes).to_vec();
        memory(to, bytes).copy_from_slice(&copied);
        Ok(())
    }

    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()> {
        self.check(address, bytes, "zeros");
        memory(address, bytes).fill(0);
        Ok(())
    }

    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.limits.launches.fetch_add(1, Ordering::Relaxed);
        let library = library(launch.program);
        // SAFETY: each library of kernels has this function.
        let run: Symbol<'_, HostLaunch> = unsafe { library.get(b"host_launch\0") }.unwrap();
        let mut words: Vec<u64> = Vec::new();
        for argument in launch.arguments {
            words.push(match *argument {
                Argument::Address(x) => {
                    if x != 0 {
                        self.check(x, 0, "an argument");
                    }
                    x
                }
                Argument::U64(x) => x,
                Argument::U32(x) => u64::from(x),
                Argument::F32(x) => u64::from(x.to_bits()),
            });
        }
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
        if launch.program.name == "attention" {
            check_attention_sizes(&library, &launch);
        }
        let name = CString::new(launch.kernel).unwrap();
        let (grid, block, shared) = (launch.grid, launch.block, launch.shared_bytes);
        // SAFETY: as the caller says.
        let code = unsafe { run(name.as_ptr(), grid.as_ptr(), block, shared, pointers.as_mut_ptr()) };
        if code != 0 {
            bail!("{}: no kernel {}", launch.program.name, launch.kernel);
        }
        self.check_guards(launch.kernel);
        Ok(())
    }

    fn prepare(&self, program: &Program, _: &str) -> Result<()> {
        library(program);
        Ok(())
    }

    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        self.limits.launches.fetch_add(1, Ordering::Relaxed);
        let Some((m, n, k)) = product.sizes() else { bail!("matrices that do not fit: {product:?}") };
        assert_eq!(product.a.number, product.b.number, "cuBLAS takes factors of one type");
        assert!(product.c.number == product.a.number || product.c.number == Number::F32, "nor another sum");
        for matrix in [product.a, product.b, product.c] {
            let last = (matrix.rows - 1) * matrix.stride + matrix.columns;
            self.check(matrix.address, last * matrix.number.bytes(), "a matrix");
            assert!(matrix.address.is_multiple_of(matrix.number.bytes() as Address));
        }
        let (a, b) = (numbers(&product.a, product.transpose_a), numbers(&product.b, !product.transpose_b));
        let rows: Vec<Vec<f32>> = (0..m)
            .into_par_iter()
            .map(|i| {
                let row = &a[i * k..][..k];
                (0..n).map(|j| row.iter().zip(&b[j * k..][..k]).map(|(a, b)| a * b).sum()).collect()
            })
            .collect();
        for (i, row) in rows.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                let before = if product.beta == 0.0 { 0.0 } else { product.beta * number(&product.c, i, j) };
                set_number(&product.c, i, j, product.alpha * sum + before);
            }
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.check_guards("something");
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        self.marks.lock().unwrap().push(Instant::now());
        Ok(())
    }

    fn take_marks(&self) -> Result<Vec<f64>> {
        let marks = std::mem::take(&mut *self.marks.lock().unwrap());
        Ok(marks.iter().map(|mark| (*mark - marks[0]).as_secs_f64()).collect())
    }
}

impl Drop for HostGpu {
    fn drop(&mut self) {
        let blocks = [self.blocks.get_mut().unwrap(), self.pinned.get_mut().unwrap()];
        assert!(
            blocks.iter().all(|blocks| blocks.is_empty()) || std::thread::panicking(),
            "memory was not given back: {blocks:?}"
        );
    }
}
