//! NVIDIA's driver, cuBLAS and NVRTC, which are loaded when a GPU is opened: a build needs none of them, and the program starts
//! where there are none.

#![expect(unsafe_code, reason = "the driver's functions take addresses and handles")]

mod folders;
mod functions;
mod libraries;
mod nvrtc;
mod open;

pub use open::is_there;

use super::driver::{Address, Argument, Driver, Launch, Matrix, MatrixProduct, Number, Program};
use super::images::{self, Target};
use super::{GpuFacts, facts};
use candle_core::{Error, Result, bail};
use functions::{Code, Handle};
use libraries::{Libraries, Paths};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Shared memory of a block beyond which a kernel must be told that it may.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

// Numbers of NVIDIA's headers, under their names there.
const CUDA_ERROR_OUT_OF_MEMORY: Code = 2;
const CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const CUBLAS_OP_N: c_int = 0;
const CUBLAS_OP_T: c_int = 1;
const CUBLAS_COMPUTE_32F: c_int = 68;
const CUBLAS_GEMM_DEFAULT: c_int = -1;
const CUDA_R_32F: c_int = 0;
const CUDA_R_16BF: c_int = 14;

/// An open NVIDIA GPU: its primary context, one stream on which all work goes, and cuBLAS on that stream.
pub struct Nvidia {
    number: usize,
    libraries: Libraries,
    device: c_int,
    context: Handle,
    stream: Handle,
    blas: Handle,
    /// cuBLAS' own memory, and its size: taken when it is opened, so that no product has to ask for it later.
    workspace: (Address, usize),
    target: Target,
    /// Whether it reads the CPU's memory by itself, pinned or not.
    reads_pageable_memory: bool,
    loaded: Mutex<Vec<Loaded>>,
    marks: Mutex<Vec<Handle>>,
}

/// A loaded program, and the functions that were looked up in it. A step looks up some thousand times.
struct Loaded {
    name: &'static str,
    defines: Vec<(&'static str, usize)>,
    module: Handle,
    functions: HashMap<String, Handle>,
}

// SAFETY: handles are made for use by any thread whose current context is theirs, and each function sees to that. cuBLAS allows
// one handle in several threads as long as its settings stay, and they are set before anyone has it.
unsafe impl Send for Nvidia {}
// SAFETY: as above.
unsafe impl Sync for Nvidia {}

impl Nvidia {
    fn done(&self, code: Code, what: &str) -> Result<()> {
        self.libraries.cuda_done(code, what)
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        self.done(unsafe { (self.libraries.cuda.cuCtxSetCurrent)(self.context) }, "the GPU's context")
    }

    /// A kernel, compiled and loaded where it was not yet.
    fn function(&self, program: &Program, name: &str) -> Result<Handle> {
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|loaded| (loaded.name, &*loaded.defines) == program.key());
        let place = if let Some(place) = found {
            place
        } else {
            let module = self.load(program)?;
            let (name, defines) = (program.name, program.defines.clone());
            all.push(Loaded { name, defines, module, functions: HashMap::new() });
            all.len() - 1
        };
        let loaded = &mut all[place];
        if let Some(function) = loaded.functions.get(name) {
            return Ok(*function);
        }
        let symbol = CString::new(name).map_err(Error::wrap)?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, and never unloaded before `self` goes; the name ends with a zero.
        let code =
            unsafe { (self.libraries.cuda.cuModuleGetFunction)(&raw mut function, loaded.module, symbol.as_ptr()) };
        self.done(code, name)?;
        loaded.functions.insert(name.to_owned(), function);
        Ok(function)
    }

    fn load(&self, program: &Program) -> Result<Handle> {
        let Libraries { nvrtc, paths, .. } = &self.libraries;
        let (major, minor) = nvrtc.version()?;
        let compile =
            |program: &Program, target| nvrtc.compile(program, target).map_err(|error| with_paths(&error, paths));
        let image = images::compiled(program, self.target, &format!("NVRTC {major}.{minor}"), compile)?;
        let mut module = std::ptr::null_mut();
        // SAFETY: it is what the compiler gave; PTX ends with a zero.
        let code = unsafe { (self.libraries.cuda.cuModuleLoadData)(&raw mut module, image.as_ptr().cast()) };
        self.done(code, "loading kernels").map_err(|error| with_paths(&error, paths))?;
        Ok(module)
    }
}

/// An error, and the libraries that were used, in its first line.
fn with_paths(error: &Error, paths: &Paths) -> Error {
    let text = error.to_string();
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    if first.contains(&paths.to_string()) {
        return Error::Msg(text);
    }
    let rest = if rest.is_empty() { String::new() } else { format!("\n{rest}") };
    Error::Msg(format!("{first} [{paths}]{rest}"))
}

impl Driver for Nvidia {
    fn facts(&self) -> Result<GpuFacts> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers to where it is told.
        let code = unsafe { (self.libraries.cuda.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.done(code, "asking for memory")?;
        let mut name = [0 as c_char; 256];
        // SAFETY: it writes at most so many bytes, with a zero at the end.
        let code = unsafe { (self.libraries.cuda.cuDeviceGetName)(name.as_mut_ptr(), 256, self.device) };
        self.done(code, "asking for the name")?;
        let name: Vec<u8> = name.iter().flat_map(|byte| byte.to_ne_bytes()).collect();
        let name = CStr::from_bytes_until_nul(&name).map_err(Error::wrap)?.to_string_lossy().into_owned();
        let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
        Ok(GpuFacts {
            name,
            capability: self.libraries.capability(self.device)?,
            driver: driver.as_deref().and_then(facts::driver_version),
            cuda: self.libraries.version,
            total: total as u64,
            free: free as u64,
            libraries: self.libraries.paths.0.clone(),
        })
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace.1
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: it writes an address to where it is told.
        match unsafe { (self.libraries.cuda.cuMemAlloc_v2)(&raw mut address, bytes) } {
            CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            code => self.done(code, "allocating memory").map(|()| Some(address)),
        }
    }

    unsafe fn free(&self, address: Address) {
        let freed = self.synchronize().and_then(|()| {
            // SAFETY: as the caller says; it was waited for the work that may use it.
            self.done(unsafe { (self.libraries.cuda.cuMemFree_v2)(address) }, "freeing memory")
        });
        if let Err(error) = freed {
            tracing::warn!(%error, "the GPU's memory could not be freed");
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        self.enter()?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: as the caller says. From memory that is not pinned the driver has copied when it returns, unless the GPU
        // reads such memory by itself: then it is waited for.
        let code =
            unsafe { (self.libraries.cuda.cuMemcpyHtoDAsync_v2)(to, from.as_ptr().cast(), from.len(), self.stream) };
        self.done(code, "copying to the GPU")?;
        if self.reads_pageable_memory { self.synchronize() } else { Ok(()) }
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        if !to.is_empty() {
            let (into, bytes) = (to.as_mut_ptr().cast(), to.len());
            // SAFETY: as the caller says; it is waited for below.
            let code = unsafe { (self.libraries.cuda.cuMemcpyDtoHAsync_v2)(into, from, bytes, self.stream) };
            self.done(code, "copying from the GPU")?;
        }
        self.synchronize()
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        self.enter()?;
        let mut address = std::ptr::null_mut();
        // SAFETY: it writes an address to where it is told.
        let code = unsafe { (self.libraries.cuda.cuMemHostAlloc)(&raw mut address, bytes, 0) };
        self.done(code, "pinning memory of the CPU")?;
        Ok(address as Address)
    }

    unsafe fn free_pinned(&self, address: Address) {
        let freed = self.synchronize().and_then(|()| {
            // SAFETY: as the caller says; it was waited for the work that may use it.
            let code = unsafe { (self.libraries.cuda.cuMemFreeHost)(address as *mut c_void) };
            self.done(code, "freeing memory of the CPU")
        });
        if let Err(error) = freed {
            tracing::warn!(%error, "pinned memory could not be freed");
        }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as the caller says; the driver tells from an address where it is.
        self.done(unsafe { (self.libraries.cuda.cuMemcpyAsync)(to, from, bytes, self.stream) }, "copying")
    }

    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as the caller says.
        self.done(unsafe { (self.libraries.cuda.cuMemsetD8Async)(address, 0, bytes, self.stream) }, "clearing memory")
    }

    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.enter()?;
        let function = self.function(launch.program, launch.kernel)?;
        if launch.shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = c_int::try_from(launch.shared_bytes).map_err(Error::wrap)?;
            // SAFETY: the function is loaded.
            let code = unsafe { (self.libraries.cuda.cuFuncSetAttribute)(function, attribute, bytes) };
            self.done(code, launch.kernel)?;
        }
        // Each argument's bytes in a word of its own, which little-endian machines read from its beginning.
        let mut words: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Address(x) | Argument::U64(x) => x,
                Argument::U32(x) => u64::from(x),
                Argument::F32(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
        let ([x, y, z], block, shared) = (launch.grid, launch.block, launch.shared_bytes);
        let (stream, arguments, extra) = (self.stream, pointers.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: as the caller says; the driver copies the arguments before it returns.
        let code = unsafe {
            (self.libraries.cuda.cuLaunchKernel)(function, x, y, z, block, 1, 1, shared, stream, arguments, extra)
        };
        self.done(code, launch.kernel)
    }

    fn prepare(&self, program: &Program, kernel: &str) -> Result<()> {
        self.enter()?;
        self.function(program, kernel).map(|_| ())
    }

    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        self.enter()?;
        let Some((m, n, k)) = product.sizes() else { bail!("matrices that do not fit: {product:?}") };
        let int = |size: usize| i32::try_from(size).map_err(Error::wrap);
        let operation = |transpose: bool| if transpose { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let dtype = |matrix: Matrix| match matrix.number {
            Number::F32 => CUDA_R_32F,
            Number::Bf16 => CUDA_R_16BF,
        };
        let MatrixProduct { a, transpose_a, b, transpose_b, c, alpha, beta } = *product;
        // cuBLAS reads by columns: what is [m, n] by rows is its transposed by columns, and (A·B)ᵀ = Bᵀ·Aᵀ.
        // SAFETY: as the caller says.
        let code = unsafe {
            (self.libraries.blas.cublasGemmEx)(
                self.blas,
                operation(transpose_b),
                operation(transpose_a),
                int(n)?,
                int(m)?,
                int(k)?,
                (&raw const alpha).cast(),
                b.address as *const c_void,
                dtype(b),
                int(b.stride)?,
                a.address as *const c_void,
                dtype(a),
                int(a.stride)?,
                (&raw const beta).cast(),
                c.address as *mut c_void,
                dtype(c),
                int(c.stride)?,
                CUBLAS_COMPUTE_32F,
                CUBLAS_GEMM_DEFAULT,
            )
        };
        if code == 0 {
            return Ok(());
        }
        let shape = format!("multiplying matrices, {m}x{n}x{k}");
        self.libraries.blas_done(code, &shape)
    }

    fn mark(&self) -> Result<()> {
        self.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: it writes a handle to where it is told.
        self.done(unsafe { (self.libraries.cuda.cuEventCreate)(&raw mut event, 0) }, "making an event")?;
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        // SAFETY: event and stream are of this context.
        self.done(unsafe { (self.libraries.cuda.cuEventRecord)(event, self.stream) }, "recording an event")
    }

    fn take_marks(&self) -> Result<Vec<f64>> {
        self.synchronize()?;
        let events = std::mem::take(&mut *self.marks.lock().unwrap_or_else(PoisonError::into_inner));
        // From one to the next, and added up: from the first on, a float of milliseconds would lose the short pieces.
        let between = events.windows(2).map(|pair| {
            let mut milliseconds = 0f32;
            // SAFETY: both events were recorded, and the stream has passed them.
            let code = unsafe { (self.libraries.cuda.cuEventElapsedTime)(&raw mut milliseconds, pair[0], pair[1]) };
            self.done(code, "reading an event").map(|()| f64::from(milliseconds) / 1e3)
        });
        let between: Result<Vec<f64>> = between.collect();
        for &event in &events {
            // SAFETY: nobody uses it any more. That closing fails changes nothing.
            let _ = unsafe { (self.libraries.cuda.cuEventDestroy_v2)(event) };
        }
        let mut seconds: Vec<f64> = events.first().map(|_| 0.0).into_iter().collect();
        for between in between? {
            seconds.push(seconds.last().copied().unwrap_or_default() + between);
        }
        Ok(seconds)
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        self.done(unsafe { (self.libraries.cuda.cuStreamSynchronize)(self.stream) }, "waiting for the GPU")
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        let Libraries { cuda, blas, .. } = &self.libraries;
        // SAFETY: what is closed was opened by `open`, and nothing uses it. That closing fails changes nothing.
        unsafe {
            let _ = (cuda.cuCtxSetCurrent)(self.context);
            if !self.stream.is_null() {
                let _ = (cuda.cuStreamSynchronize)(self.stream);
            }
            if !self.blas.is_null() {
                let _ = (blas.cublasDestroy_v2)(self.blas);
            }
            if self.workspace.0 != 0 {
                let _ = (cuda.cuMemFree_v2)(self.workspace.0);
            }
            for event in self.marks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let _ = (cuda.cuEventDestroy_v2)(event);
            }
            for loaded in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner) {
                let _ = (cuda.cuModuleUnload)(loaded.module);
            }
            if !self.stream.is_null() {
                let _ = (cuda.cuStreamDestroy_v2)(self.stream);
            }
            let _ = (cuda.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.number)
    }
}
