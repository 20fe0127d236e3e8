//! NVRTC: from CUDA C++ to a GPU's code, or to PTX.

#![expect(unsafe_code, reason = "the compiler's functions take addresses and handles")]

use super::functions::{Code, Handle, Nvrtc, Text};
use crate::device::driver::Program;
use crate::device::images::Target;
use candle_core::{Error, Result, bail};
use std::ffi::{CString, c_char};
use std::fmt::Display;

impl Nvrtc {
    fn done(&self, code: Code, what: impl Display) -> Result<()> {
        match code {
            0 => Ok(()),
            code => bail!("{what}: {}", self.describe(code)),
        }
    }

    /// Its version, which is its CUDA's.
    pub fn version(&self) -> Result<(u32, u32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers to where it is told.
        let code = unsafe { (self.nvrtcVersion)(&raw mut major, &raw mut minor) };
        self.done(code, "asking NVRTC for its version")?;
        Ok((u32::try_from(major).map_err(Error::wrap)?, u32::try_from(minor).map_err(Error::wrap)?))
    }

    /// The architectures whose code it makes, as 10 · major + minor.
    pub fn architectures(&self) -> Result<Vec<u32>> {
        let what = "asking NVRTC for its architectures";
        let mut count = 0;
        // SAFETY: it writes a number to where it is told.
        self.done(unsafe { (self.nvrtcGetNumSupportedArchs)(&raw mut count) }, what)?;
        let mut all = vec![0; usize::try_from(count).map_err(Error::wrap)?];
        // SAFETY: it writes as many numbers as it just said.
        self.done(unsafe { (self.nvrtcGetSupportedArchs)(all.as_mut_ptr()) }, what)?;
        Ok(all.into_iter().filter_map(|architecture| u32::try_from(architecture).ok()).collect())
    }

    /// Compiles a program: a GPU's code as it is, or PTX with a zero behind it.
    pub fn compile(&self, program: &Program, target: Target) -> Result<Vec<u8>> {
        let file = format!("{}.cu", program.name);
        let what = format!("compiling {file}");
        let source = CString::new(program.text()).map_err(Error::wrap)?;
        let name = CString::new(file).map_err(Error::wrap)?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: both texts end with a zero, and there are no headers.
        let code = unsafe {
            let none = std::ptr::null();
            (self.nvrtcCreateProgram)(&raw mut handle, source.as_ptr(), name.as_ptr(), 0, none, none)
        };
        self.done(code, &what)?;
        let compilation = Compilation { nvrtc: self, handle };
        let option = CString::new(format!("--gpu-architecture={}", target.name())).map_err(Error::wrap)?;
        let options: [Text; 1] = [option.as_ptr()];
        // SAFETY: it is made, and the option ends with a zero.
        let code = unsafe { (self.nvrtcCompileProgram)(handle, 1, options.as_ptr()) };
        if code != 0 {
            let log = compilation.bytes(self.nvrtcGetProgramLogSize, self.nvrtcGetProgramLog).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            bail!("{what}: {}\n{}", self.describe(code), log.trim_end_matches('\0'));
        }
        let image = if target.is_code() {
            compilation.bytes(self.nvrtcGetCUBINSize, self.nvrtcGetCUBIN)
        } else {
            compilation.bytes(self.nvrtcGetPTXSize, self.nvrtcGetPTX)
        };
        image.or_else(|code| bail!("{what}: {}", self.describe(code)))
    }
}

/// A program that is being compiled.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    handle: Handle,
}

type GetSize = unsafe extern "C" fn(Handle, *mut usize) -> Code;
type Get = unsafe extern "C" fn(Handle, *mut c_char) -> Code;

impl Compilation<'_> {
    fn bytes(&self, size: GetSize, get: Get) -> std::result::Result<Vec<u8>, Code> {
        let done = |code: Code| if code == 0 { Ok(()) } else { Err(code) };
        let mut count = 0;
        // SAFETY: it is made; a number is written to where it is told.
        done(unsafe { size(self.handle, &raw mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: it writes as many bytes as it just said.
        done(unsafe { get(self.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made, and nobody uses it. That closing fails changes nothing.
        let _ = unsafe { (self.nvrtc.nvrtcDestroyProgram)(&raw mut self.handle) };
    }
}
