//! NVRTC: from CUDA C++ to a GPU's code, or to PTX.

#![expect(unsafe_code, reason = "the compiler's functions take addresses and handles")]

use super::driver::Program;
use super::images::Target;
use candle_core::{Error, Result, bail};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// The functions that are called.
pub(super) const FUNCTIONS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

fn wrap(what: impl std::fmt::Display) -> impl FnOnce(result::NvrtcError) -> Error {
    move |error| Error::Msg(format!("{what}: {error:?}"))
}

/// Its version, which is its CUDA's.
pub(super) fn version() -> Result<(u32, u32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two numbers to where it is told.
    let answer = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    answer.result().map_err(wrap("asking for NVRTC's version"))?;
    Ok((u32::try_from(major).map_err(Error::wrap)?, u32::try_from(minor).map_err(Error::wrap)?))
}

/// The architectures whose code it makes, as 10 · major + minor.
pub(super) fn architectures() -> Result<Vec<u32>> {
    let what = "asking for NVRTC's architectures";
    let mut count = 0;
    // SAFETY: it writes a number to where it is told.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(wrap(what))?;
    let mut all = vec![0; usize::try_from(count).map_err(Error::wrap)?];
    // SAFETY: it writes as many numbers as it just said.
    unsafe { sys::nvrtcGetSupportedArchs(all.as_mut_ptr()) }.result().map_err(wrap(what))?;
    Ok(all.into_iter().filter_map(|architecture| u32::try_from(architecture).ok()).collect())
}

/// A program that is being compiled.
struct Compilation(sys::nvrtcProgram);

impl Drop for Compilation {
    fn drop(&mut self) {
        // SAFETY: it was made, and nobody uses it.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles a program: a GPU's code as it is, or PTX with a zero behind it.
pub(super) fn compile(program: &Program, target: Target) -> Result<Vec<u8>> {
    let file = format!("{}.cu", program.name);
    let source = CString::new(program.text()).map_err(Error::wrap)?;
    let name = CString::new(file.as_str()).map_err(Error::wrap)?;
    let compilation =
        Compilation(result::create_program(&source, Some(&name)).map_err(wrap(format_args!("compiling {file}")))?);
    let options = [format!("--gpu-architecture={}", target.name())];
    // SAFETY: it is made, and its source and name are still there.
    if let Err(error) = unsafe { result::compile_program(compilation.0, &options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(compilation.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().flat_map(std::ffi::c_char::to_ne_bytes).collect();
        bail!("compiling {file}: {error:?}\n{}", String::from_utf8_lossy(&log).trim_end_matches('\0'));
    }
    let (size, get): (GetSize, Get) = if target.is_code() {
        (sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)
    } else {
        (sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)
    };
    let mut bytes = 0;
    // SAFETY: it is compiled; a number is written to where it is told.
    unsafe { size(compilation.0, &raw mut bytes) }.result().map_err(wrap(format_args!("compiling {file}")))?;
    let mut image = vec![0u8; bytes];
    // SAFETY: it writes as many bytes as it just said.
    unsafe { get(compilation.0, image.as_mut_ptr().cast()) }
        .result()
        .map_err(wrap(format_args!("compiling {file}")))?;
    Ok(image)
}

type GetSize = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type Get = unsafe fn(sys::nvrtcProgram, *mut std::ffi::c_char) -> sys::nvrtcResult;
