//! Opening a GPU: its context, the stream on which all work goes, and cuBLAS.

#![expect(unsafe_code, reason = "the driver's functions take addresses and handles")]

use super::functions::Code;
use super::libraries::{self, Libraries, NoDriver};
use super::{Nvidia, with_paths};
use crate::device::driver::Driver as _;
use crate::device::images::Target;
use candle_core::{Error, Result, bail};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;

// Numbers of NVIDIA's headers, under their names there.
const CUDA_ERROR_NO_DEVICE: Code = 100;
const CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: c_int = 76;
const CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: c_int = 88;
const CU_STREAM_NON_BLOCKING: c_uint = 1;
const CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: c_int = 16;

/// Whether there is a driver, and not one that lists no GPU. One that does not work counts: opening it says why.
pub fn is_there() -> bool {
    let cuda = match libraries::driver() {
        Ok((cuda, _)) => cuda,
        Err(NoDriver::NotFound(why)) => {
            tracing::debug!("{why}");
            return false;
        }
        Err(NoDriver::Broken(_)) => return true,
    };
    let mut count = 0;
    // SAFETY: the first asks for nothing; the second writes a number to where it is told.
    unsafe {
        match (cuda.cuInit)(0) {
            0 => (cuda.cuDeviceGetCount)(&raw mut count) != 0 || count != 0,
            code => code != CUDA_ERROR_NO_DEVICE,
        }
    }
}

impl Libraries {
    pub(super) fn cuda_done(&self, code: Code, what: &str) -> Result<()> {
        if code == 0 { Ok(()) } else { bail!("{what}: {}", self.cuda.describe(code)) }
    }

    /// Products fail where libraries do not fit each other: their paths are part of the error.
    pub(super) fn blas_done(&self, code: Code, what: &str) -> Result<()> {
        if code == 0 { Ok(()) } else { bail!("{what}: {} [{}]", self.blas.describe(code), self.paths) }
    }

    fn attribute(&self, device: c_int, attribute: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: it writes a number to where it is told; the device is one that the driver named.
        let code = unsafe { (self.cuda.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        self.cuda_done(code, "asking the GPU")?;
        u32::try_from(value).map_err(Error::wrap)
    }

    pub(super) fn capability(&self, device: c_int) -> Result<(u32, u32)> {
        Ok((
            self.attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }
}

/// Bytes that cuBLAS may work in: what NVIDIA advises for Hopper and newer, and room for split sums before.
const fn workspace_bytes(capability: (u32, u32)) -> usize {
    if capability.0 >= 9 { 32 << 20 } else { 12 << 20 }
}

impl Nvidia {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// When a library is missing, there is no such GPU, or it is too old.
    pub fn open(number: usize) -> Result<Self> {
        let libraries = libraries::load()?;
        let paths = libraries.paths.clone();
        Self::open_with(libraries, number).map_err(|error| with_paths(&error, &paths))
    }

    fn open_with(libraries: Libraries, number: usize) -> Result<Self> {
        let cuda = &libraries.cuda;
        let mut device = 0;
        let index = c_int::try_from(number).map_err(Error::wrap)?;
        // SAFETY: it writes a number to where it is told.
        libraries.cuda_done(unsafe { (cuda.cuDeviceGet)(&raw mut device, index) }, "finding the GPU")?;
        let capability = libraries.capability(device)?;
        let target = Target::new(capability, &libraries.nvrtc.architectures()?)?;
        let reads_pageable_memory =
            libraries.attribute(device, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS).is_ok_and(|value| value != 0);
        let mut context = std::ptr::null_mut();
        // SAFETY: it writes a handle to where it is told; the device is one that the driver named.
        let code = unsafe { (cuda.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        libraries.cuda_done(code, "opening the GPU")?;
        // From here on what was opened is closed where the rest fails.
        let mut gpu = Self {
            number,
            libraries,
            device,
            context,
            stream: std::ptr::null_mut(),
            blas: std::ptr::null_mut(),
            workspace: (0, workspace_bytes(capability)),
            target,
            reads_pageable_memory,
            loaded: Mutex::default(),
            marks: Mutex::default(),
        };
        gpu.enter()?;
        // SAFETY: it writes a handle to where it is told.
        let code = unsafe { (gpu.libraries.cuda.cuStreamCreate)(&raw mut gpu.stream, CU_STREAM_NON_BLOCKING) };
        gpu.done(code, "opening a stream")?;
        gpu.open_blas()?;
        Ok(gpu)
    }

    /// cuBLAS on the stream, with memory of its own. Sums stay in f32 also where it cuts a product into parts.
    fn open_blas(&mut self) -> Result<()> {
        let (blas, bytes) = (&self.libraries.blas, self.workspace.1);
        // SAFETY: it writes a handle to where it is told.
        let code = unsafe { (blas.cublasCreate_v2)(&raw mut self.blas) };
        self.libraries.blas_done(code, "opening cuBLAS")?;
        // SAFETY: handle and stream were made in this context.
        let code = unsafe { (blas.cublasSetStream_v2)(self.blas, self.stream) };
        self.libraries.blas_done(code, "opening cuBLAS")?;
        // SAFETY: the handle was just made.
        let code = unsafe { (blas.cublasSetMathMode)(self.blas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION) };
        self.libraries.blas_done(code, "opening cuBLAS")?;
        let Some(address) = self.allocate(bytes)? else {
            bail!("opening cuBLAS: CUDA_ERROR_OUT_OF_MEMORY: {} MiB to work in were asked for", bytes >> 20);
        };
        self.workspace.0 = address;
        // SAFETY: so much memory is there, and stays until the handle is closed. Setting a stream takes a workspace back, so it
        // comes after that.
        let code = unsafe { (self.libraries.blas.cublasSetWorkspace_v2)(self.blas, address as *mut c_void, bytes) };
        self.libraries.blas_done(code, "opening cuBLAS")
    }
}
