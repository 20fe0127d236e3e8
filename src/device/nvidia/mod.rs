//! NVIDIA's driver, cuBLAS and NVRTC, which are loaded when a GPU is opened: a build needs none of them, and the program starts
//! where there are none.

#![expect(unsafe_code, reason = "the driver's functions take addresses and handles")]

use super::driver::{Address, Argument, Driver, Launch, Matrix, MatrixProduct, Number, Program};
use super::images::{self, Target};
use super::{GpuFacts, facts, nvrtc};
use candle_core::{Error, Result, bail};
use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::{result as cu, sys};
use cudarc::nvrtc::sys as nvrtc_sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Shared memory of a block beyond which a kernel must be told that it may.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// An open NVIDIA GPU: its primary context, one stream on which all work goes, and cuBLAS on that stream.
pub struct Nvidia {
    number: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    blas: blas_sys::cublasHandle_t,
    target: Target,
    /// NVRTC's version.
    compiler: String,
    /// Whether it reads the CPU's memory by itself, pinned or not.
    reads_pageable_memory: bool,
    loaded: Mutex<Vec<Loaded>>,
}

/// A loaded program, and the functions that were looked up in it. A step looks up some thousand times.
struct Loaded {
    name: &'static str,
    defines: Vec<(&'static str, usize)>,
    module: sys::CUmodule,
    functions: HashMap<String, sys::CUfunction>,
}

// SAFETY: handles are made for use by any thread whose current context is theirs, and each function sees to that. cuBLAS allows
// one handle in several threads as long as its settings stay, and they are set before anyone has it.
unsafe impl Send for Nvidia {}
// SAFETY: as above.
unsafe impl Sync for Nvidia {}

/// What the driver says, as an error.
fn wrap(what: &str) -> impl Fn(cu::DriverError) -> Error {
    move |error| Error::Msg(format!("{what}: {error:?}"))
}

/// Whether there is a driver, and not one that lists no GPU. One that does not work counts: opening it tells why.
pub fn is_there() -> bool {
    // SAFETY: it looks for a file, and calls nothing in it.
    let present = unsafe { sys::is_culib_present() };
    if !present || driver().is_err() {
        return present;
    }
    match cu::init() {
        Ok(()) => cu::device::get_count() != Ok(0),
        Err(cu::DriverError(error)) => {
            !matches!(error, sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY)
        }
    }
}

impl Nvidia {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// When a library is missing, there is no such GPU, or it is too old.
    pub fn open(number: usize) -> Result<Self> {
        libraries()?;
        cu::init().map_err(wrap("opening the driver"))?;
        let device = i32::try_from(number).map_err(Error::wrap)?;
        let device = cu::device::get(device).map_err(wrap("finding the GPU"))?;
        let capability = capability(device)?;
        let target = Target::new(capability, &nvrtc::architectures()?)?;
        let compiler = compiler()?;
        let pageable = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
        // SAFETY: the device is one that the driver named.
        let reads_pageable_memory = unsafe { cu::device::get_attribute(device, pageable) } != Ok(0);
        // SAFETY: the device is one that the driver named.
        let context = unsafe { cu::primary_ctx::retain(device) }.map_err(wrap("opening the GPU"))?;
        // SAFETY: the context was just retained.
        unsafe { cu::ctx::set_current(context) }.map_err(wrap("opening the GPU"))?;
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking).map_err(wrap("opening a stream"))?;
        let handle = blas::create_handle().map_err(|error| Error::Msg(format!("opening cuBLAS: {error:?}")))?;
        // Sums stay in f32 also where cuBLAS cuts a product into parts.
        let mode = blas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: handle and stream were just made in this context.
        unsafe {
            blas::set_stream(handle, stream.cast()).map_err(|error| Error::Msg(format!("cuBLAS: {error:?}")))?;
            blas_sys::cublasSetMathMode(handle, mode)
                .result()
                .map_err(|error| Error::Msg(format!("cuBLAS: {error:?}")))?;
        }
        Ok(Self {
            number,
            device,
            context,
            stream,
            blas: handle,
            target,
            compiler,
            reads_pageable_memory,
            loaded: Mutex::default(),
        })
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { cu::ctx::set_current(self.context) }.map_err(wrap("the GPU's context"))
    }

    /// A kernel, compiled and loaded where it was not yet.
    fn function(&self, program: &Program, name: &str) -> Result<sys::CUfunction> {
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
        // SAFETY: the module is loaded, and never unloaded before `self` goes.
        let function = unsafe { cu::module::get_function(loaded.module, symbol) }.map_err(wrap(name))?;
        loaded.functions.insert(name.to_owned(), function);
        Ok(function)
    }

    fn load(&self, program: &Program) -> Result<sys::CUmodule> {
        let image = images::compiled(program, self.target, &self.compiler, nvrtc::compile)?;
        // SAFETY: it is what the compiler gave; PTX ends with a zero.
        unsafe { cu::module::load_data(image.as_ptr().cast()) }.map_err(wrap("loading kernels"))
    }
}

/// The functions that are called, by library: cudarc looks each up when it is called first, and panics where it is not there.
const DRIVER: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyAsync",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];
const CUBLAS: &[&str] =
    &["cublasCreate_v2", "cublasDestroy_v2", "cublasGemmEx", "cublasSetMathMode", "cublasSetStream_v2"];

/// That all libraries can be found, and have what is called.
fn libraries() -> Result<()> {
    driver()?;
    // SAFETY: it looks for files and for names in them, and calls nothing.
    let (cublas, has_nvrtc) = unsafe { (blas_sys::is_culib_present(), nvrtc_sys::is_culib_present()) };
    // SAFETY: as above, once the file is known to be there.
    has_all("cuBLAS, libcublas", cublas, CUBLAS, |name| unsafe { blas_sys::culib().get::<Function>(name).is_ok() })?;
    // SAFETY: as above.
    has_all("NVRTC, libnvrtc", has_nvrtc, nvrtc::FUNCTIONS, |name| unsafe {
        nvrtc_sys::culib().get::<Function>(name).is_ok()
    })
}

/// That the driver's library can be found, and has what is called.
fn driver() -> Result<()> {
    // SAFETY: it looks for a file, and calls nothing in it.
    let present = unsafe { sys::is_culib_present() };
    // SAFETY: it looks for a name in a file that is there.
    has_all("the driver, libcuda", present, DRIVER, |name| unsafe { sys::culib().get::<Function>(name).is_ok() })
}

type Function = unsafe extern "C" fn();

fn has_all(library: &str, present: bool, functions: &[&str], has: impl Fn(&[u8]) -> bool) -> Result<()> {
    if !present {
        bail!("CUDA library not found: {library}");
    }
    match functions.iter().find(|name| !has(name.as_bytes())) {
        Some(name) => bail!("CUDA library without a function: {library}, {name}"),
        None => Ok(()),
    }
}

fn capability(device: sys::CUdevice) -> Result<(u32, u32)> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let ask = |attribute| -> Result<u32> {
        // SAFETY: the device is one that the driver named.
        let value = unsafe { cu::device::get_attribute(device, attribute) }.map_err(wrap("asking the GPU"))?;
        u32::try_from(value).map_err(Error::wrap)
    };
    Ok((ask(MAJOR)?, ask(MINOR)?))
}

/// NVRTC's name and version. A driver runs what compilers of its CUDA's major version make, and of older ones.
fn compiler() -> Result<String> {
    let ((major, minor), driver) = (nvrtc::version()?, cuda_version().unwrap_or_default());
    if major > driver.0 {
        bail!("NVRTC {major}.{minor} is newer than the driver's CUDA {}.{}", driver.0, driver.1);
    }
    Ok(format!("NVRTC {major}.{minor}"))
}

/// The newest CUDA that the driver can run.
fn cuda_version() -> Option<(u32, u32)> {
    let mut version = 0;
    // SAFETY: it writes one number to where it is told.
    let answer = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    let version = u32::try_from(version).ok().filter(|_| answer == sys::CUresult::CUDA_SUCCESS)?;
    Some((version / 1000, version % 1000 / 10))
}

impl Driver for Nvidia {
    fn facts(&self) -> Result<GpuFacts> {
        self.enter()?;
        let (free, total) = cu::mem_get_info().map_err(wrap("asking for memory"))?;
        let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
        Ok(GpuFacts {
            name: cu::device::get_name(self.device).map_err(wrap("asking for the name"))?,
            capability: capability(self.device)?,
            driver: driver.as_deref().and_then(facts::driver_version),
            cuda: cuda_version().unwrap_or_default(),
            total: total as u64,
            free: free as u64,
        })
    }

    fn allocate(&self, bytes: usize) -> Result<Option<Address>> {
        self.enter()?;
        // SAFETY: nothing is asked of memory but its size.
        match unsafe { cu::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(cu::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(wrap("allocating memory")(error)),
        }
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: as the caller says; it is waited for the work that may use it.
        let freed = self.synchronize().and_then(|()| unsafe { cu::free_sync(address) }.map_err(wrap("freeing memory")));
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
        unsafe { cu::memcpy_htod_async(to, from, self.stream) }.map_err(wrap("copying to the GPU"))?;
        if self.reads_pageable_memory { self.synchronize() } else { Ok(()) }
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        if !to.is_empty() {
            // SAFETY: as the caller says; it is waited for below.
            unsafe { cu::memcpy_dtoh_async(to, from, self.stream) }.map_err(wrap("copying from the GPU"))?;
        }
        self.synchronize()
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<Address> {
        self.enter()?;
        // SAFETY: nothing is asked of memory but its size.
        let address = unsafe { cu::malloc_host(bytes, 0) }.map_err(wrap("pinning memory of the CPU"))?;
        Ok(address as Address)
    }

    unsafe fn free_pinned(&self, address: Address) {
        // SAFETY: as the caller says; it is waited for the work that may use it.
        let freed = self
            .synchronize()
            .and_then(|()| unsafe { cu::free_host(address as *mut c_void) }.map_err(wrap("freeing memory of the CPU")));
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
        unsafe { sys::cuMemcpyAsync(to, from, bytes, self.stream) }.result().map_err(wrap("copying"))
    }

    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as the caller says.
        unsafe { cu::memset_d8_async(address, 0, bytes, self.stream) }.map_err(wrap("clearing memory"))
    }

    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.enter()?;
        let function = self.function(launch.program, launch.kernel)?;
        if launch.shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(launch.shared_bytes).map_err(Error::wrap)?;
            // SAFETY: the function is loaded.
            unsafe { cu::function::set_function_attribute(function, attribute, bytes) }.map_err(wrap(launch.kernel))?;
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
        let ([x, y, z], block) = (launch.grid, (launch.block, 1, 1));
        // SAFETY: as the caller says; the driver copies the arguments before it returns.
        unsafe { cu::launch_kernel(function, (x, y, z), block, launch.shared_bytes, self.stream, &mut pointers) }
            .map_err(wrap(launch.kernel))
    }

    fn prepare(&self, program: &Program, kernel: &str) -> Result<()> {
        self.enter()?;
        self.function(program, kernel).map(|_| ())
    }

    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        self.enter()?;
        let Some((m, n, k)) = product.sizes() else { bail!("matrices that do not fit: {product:?}") };
        let int = |size: usize| i32::try_from(size).map_err(Error::wrap);
        let operation = |transpose: bool| {
            if transpose { blas_sys::cublasOperation_t::CUBLAS_OP_T } else { blas_sys::cublasOperation_t::CUBLAS_OP_N }
        };
        let dtype = |matrix: Matrix| match matrix.number {
            Number::F32 => blas_sys::cudaDataType_t::CUDA_R_32F,
            Number::Bf16 => blas_sys::cudaDataType_t::CUDA_R_16BF,
        };
        let MatrixProduct { a, transpose_a, b, transpose_b, c, alpha, beta } = *product;
        // cuBLAS reads by columns: what is [m, n] by rows is its transposed by columns, and (A·B)ᵀ = Bᵀ·Aᵀ.
        // SAFETY: as the caller says.
        unsafe {
            blas::gemm_ex(
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
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| Error::Msg(format!("multiplying matrices: {error:?}")))
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(wrap("waiting for the GPU"))
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // SAFETY: what is closed was opened by `open`, and nothing uses it. That closing fails changes nothing.
        unsafe {
            let _ = cu::ctx::set_current(self.context);
            let _ = cu::stream::synchronize(self.stream);
            let _ = blas::destroy_handle(self.blas);
            for loaded in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner) {
                let _ = cu::module::unload(loaded.module);
            }
            let _ = cu::stream::destroy(self.stream);
            let _ = cu::primary_ctx::release(self.device);
        }
    }
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.number)
    }
}
