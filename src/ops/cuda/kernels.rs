//! From CUDA C++ to functions on a device: compiled once in a process, loaded once on each device.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::quantized::GgmlDType;
use candle_core::{CudaDevice, Device, Result, bail};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A file of kernels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Module {
    /// Numbers of GGML blocks.
    Dequantize,
}

/// The architectures that PTX is made for. A driver translates it for every GPU that is newer, so a GPU that NVRTC has not
/// heard of yet gets the last.
const ARCHITECTURES: [((i32, i32), &str); 5] = [
    ((7, 5), "compute_75"),
    ((8, 0), "compute_80"),
    ((8, 6), "compute_86"),
    ((8, 9), "compute_89"),
    ((9, 0), "compute_90"),
];

/// What was compiled, by module and architecture. The same source always gives the same, so no caller can tell that it is kept.
static COMPILED: Mutex<BTreeMap<(&str, &str), Arc<str>>> = Mutex::new(BTreeMap::new());

impl Module {
    const ALL: [Self; 1] = [Self::Dequantize];

    /// Its name, also among the modules of a device; candle's have others.
    const fn name(self) -> &'static str {
        match self {
            Self::Dequantize => "equipoise_dequantize",
        }
    }

    const fn source(self) -> &'static str {
        match self {
            Self::Dequantize => concat!(include_str!("kernels/prelude.cuh"), include_str!("kernels/dequantize.cu")),
        }
    }

    /// The PTX for an architecture.
    fn ptx(self, architecture: &'static str) -> Result<Arc<str>> {
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ptx) = compiled.get(&(self.name(), architecture)) {
            return Ok(ptx.clone());
        }
        let options = CompileOptions { arch: Some(architecture), name: Some(self.name().into()), ..Default::default() };
        let ptx: Arc<str> = compile_ptx_with_opts(self.source(), options).w()?.to_src().into();
        compiled.insert((self.name(), architecture), ptx.clone());
        Ok(ptx)
    }

    /// A kernel of the module, on a device.
    pub(super) fn function(self, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
        let capability = device.cuda_stream().context().compute_capability().w()?;
        let ptx = self.ptx(architecture(capability)?)?;
        Ok(device.get_or_load_custom_func(name, self.name(), &ptx)?.into_cuda_function())
    }
}

/// The newest architecture that a GPU of this compute capability can run.
fn architecture(capability: (i32, i32)) -> Result<&'static str> {
    match ARCHITECTURES.iter().rev().find(|(least, _)| *least <= capability) {
        Some((_, architecture)) => Ok(architecture),
        None => bail!("no kernel for compute capability {}.{}", capability.0, capability.1),
    }
}

/// Compiles and loads all kernels, where the device is a GPU: what does not fit shows at the start.
///
/// # Errors
/// When NVRTC is missing or refuses, the driver is older than NVRTC, or the GPU is too old.
pub fn prepare(device: &Device) -> Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    for module in Module::ALL {
        module.function(device, module.any_kernel())?;
    }
    Ok(())
}

impl Module {
    /// The name of one of its kernels.
    const fn any_kernel(self) -> &'static str {
        match self {
            Self::Dequantize => "dequantize_f32_f32",
        }
    }
}

/// How kernels call a type; `None` for those that no weight is held in.
pub(super) const fn type_name(dtype: GgmlDType) -> Option<&'static str> {
    Some(match dtype {
        GgmlDType::F32 => "f32",
        GgmlDType::F16 => "f16",
        GgmlDType::BF16 => "bf16",
        GgmlDType::Q4_0 => "q4_0",
        GgmlDType::Q4_1 => "q4_1",
        GgmlDType::Q5_0 => "q5_0",
        GgmlDType::Q5_1 => "q5_1",
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q2K => "q2k",
        GgmlDType::Q3K => "q3k",
        GgmlDType::Q4K => "q4k",
        GgmlDType::Q5K => "q5k",
        GgmlDType::Q6K => "q6k",
        GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_gets_the_newest_architecture_that_it_can_run() {
        for (capability, expected) in [
            ((7, 5), "compute_75"),
            ((8, 0), "compute_80"),
            ((8, 7), "compute_86"),
            ((8, 9), "compute_89"),
            ((9, 0), "compute_90"),
            ((12, 0), "compute_90"),
        ] {
            assert_eq!(architecture(capability).unwrap(), expected);
        }
        assert!(architecture((7, 0)).unwrap_err().to_string().contains("no kernel for compute capability 7.0"));
    }
}
