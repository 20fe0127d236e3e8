//! The functions of NVIDIA's libraries that are called, with the types of their C declarations.
//!
//! Codes are plain integers: a newer library may return a code that is not known here. Names of codes come from the library.

#![expect(non_snake_case, reason = "the fields have the names of the C functions")]

use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// What a function returns: 0 is success.
pub type Code = c_int;
/// A pointer to something that only the library knows: a context, a stream, a module.
pub type Handle = *mut c_void;
/// A C string that the library owns.
pub type Text = *const c_char;

/// A table of functions of one library, each of which must be there. The library must stay loaded as long as the process runs.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($name:ident($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$about])*
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            /// Looks up all functions; the error is the name of the first that is missing.
            pub fn look_up(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of NVIDIA's declaration of this function.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }
    };
}

functions! {
    /// libcuda, the driver's own library.
    Cuda {
        cuCtxSetCurrent(Handle) -> Code;
        cuDeviceGet(*mut c_int, c_int) -> Code;
        cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> Code;
        cuDeviceGetCount(*mut c_int) -> Code;
        cuDeviceGetName(*mut c_char, c_int, c_int) -> Code;
        cuDevicePrimaryCtxRelease_v2(c_int) -> Code;
        cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> Code;
        cuDriverGetVersion(*mut c_int) -> Code;
        cuEventCreate(*mut Handle, c_uint) -> Code;
        cuEventDestroy_v2(Handle) -> Code;
        cuEventElapsedTime(*mut f32, Handle, Handle) -> Code;
        cuEventRecord(Handle, Handle) -> Code;
        cuFuncSetAttribute(Handle, c_int, c_int) -> Code;
        cuGetErrorName(Code, *mut Text) -> Code;
        cuGetErrorString(Code, *mut Text) -> Code;
        cuInit(c_uint) -> Code;
        cuLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> Code;
        cuMemAlloc_v2(*mut u64, usize) -> Code;
        cuMemFreeHost(*mut c_void) -> Code;
        cuMemFree_v2(u64) -> Code;
        cuMemGetInfo_v2(*mut usize, *mut usize) -> Code;
        cuMemHostAlloc(*mut *mut c_void, usize, c_uint) -> Code;
        cuMemcpyAsync(u64, u64, usize, Handle) -> Code;
        cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) -> Code;
        cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) -> Code;
        cuMemsetD8Async(u64, u8, usize, Handle) -> Code;
        cuModuleGetFunction(*mut Handle, Handle, Text) -> Code;
        cuModuleLoadData(*mut Handle, *const c_void) -> Code;
        cuModuleUnload(Handle) -> Code;
        cuStreamCreate(*mut Handle, c_uint) -> Code;
        cuStreamDestroy_v2(Handle) -> Code;
        cuStreamSynchronize(Handle) -> Code;
    }
}

functions! {
    /// libcublas.
    Blas {
        cublasCreate_v2(*mut Handle) -> Code;
        cublasDestroy_v2(Handle) -> Code;
        cublasGemmEx(
            Handle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void, c_int,
            c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int
        ) -> Code;
        cublasGetProperty(c_int, *mut c_int) -> Code;
        cublasGetStatusName(Code) -> Text;
        cublasSetMathMode(Handle, c_int) -> Code;
        cublasSetStream_v2(Handle, Handle) -> Code;
        cublasSetWorkspace_v2(Handle, *mut c_void, usize) -> Code;
    }
}

functions! {
    /// libcublasLt, which libcublas multiplies with.
    BlasLt {
        cublasLtGetProperty(c_int, *mut c_int) -> Code;
    }
}

functions! {
    /// libnvrtc, the compiler of kernels.
    Nvrtc {
        nvrtcCompileProgram(Handle, c_int, *const Text) -> Code;
        nvrtcCreateProgram(*mut Handle, Text, Text, c_int, *const Text, *const Text) -> Code;
        nvrtcDestroyProgram(*mut Handle) -> Code;
        nvrtcGetCUBIN(Handle, *mut c_char) -> Code;
        nvrtcGetCUBINSize(Handle, *mut usize) -> Code;
        nvrtcGetErrorString(Code) -> Text;
        nvrtcGetNumSupportedArchs(*mut c_int) -> Code;
        nvrtcGetPTX(Handle, *mut c_char) -> Code;
        nvrtcGetPTXSize(Handle, *mut usize) -> Code;
        nvrtcGetProgramLog(Handle, *mut c_char) -> Code;
        nvrtcGetProgramLogSize(Handle, *mut usize) -> Code;
        nvrtcGetSupportedArchs(*mut c_int) -> Code;
        nvrtcVersion(*mut c_int, *mut c_int) -> Code;
    }
}

/// A library's text; `None` for a null pointer.
///
/// # Safety
/// It is null, or ends with a zero.
unsafe fn text(text: Text) -> Option<String> {
    // SAFETY: as the caller says.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

impl Cuda {
    /// The name of a code and what the driver says of it, as `CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)`.
    pub fn describe(&self, code: Code) -> String {
        let ask = |function: unsafe extern "C" fn(Code, *mut Text) -> Code| {
            let mut found: Text = std::ptr::null();
            // SAFETY: it writes a pointer to where it is told; the text is the library's, and stays.
            unsafe { if function(code, &raw mut found) == 0 { text(found) } else { None } }
        };
        match (ask(self.cuGetErrorName), ask(self.cuGetErrorString)) {
            (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
            (Some(name), None) => name,
            _ => format!("CUDA error {code}"),
        }
    }
}

impl Blas {
    /// The name of a code, as `CUBLAS_STATUS_NOT_INITIALIZED`.
    pub fn describe(&self, code: Code) -> String {
        // SAFETY: it returns a text that is the library's, and stays.
        unsafe { text((self.cublasGetStatusName)(code)) }
            .filter(|name| name.starts_with("CUBLAS"))
            .unwrap_or_else(|| format!("cuBLAS status {code}"))
    }
}

impl Nvrtc {
    /// The name of a code, as `NVRTC_ERROR_COMPILATION`.
    pub fn describe(&self, code: Code) -> String {
        // SAFETY: it returns a text that is the library's, and stays.
        unsafe { text((self.nvrtcGetErrorString)(code)) }
            .filter(|name| name.starts_with("NVRTC"))
            .unwrap_or_else(|| format!("NVRTC_ERROR {code}"))
    }
}
