//! What a GPU says of itself, and what its errors mean for a user.

use crate::error::Error;
use std::fmt;
use std::path::PathBuf;

/// A GPU, as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// `NVIDIA H200`
    pub name: String,
    /// Its compute capability, as `(9, 0)`.
    pub capability: (u32, u32),
    /// The driver's version, as `580.65.06`, where the system tells.
    pub driver: Option<String>,
    /// The newest CUDA that the driver can run, as `(13, 0)`.
    pub cuda: (u32, u32),
    /// Bytes of its memory.
    pub total: u64,
    /// Of those, free when it was asked.
    pub free: u64,
    /// The libraries that are used, each with its version, and their files.
    pub libraries: Vec<(String, PathBuf)>,
}

impl GpuFacts {
    /// Whether it multiplies `bf16`: from the A100 and the RTX 30 series on.
    pub fn has_bf16(&self) -> bool {
        self.capability >= (8, 0)
    }
}

impl fmt::Display for GpuFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let Self { name, capability, cuda, .. } = self;
        write!(f, "{name}, compute capability {}.{}, ", capability.0, capability.1)?;
        if let Some(driver) = &self.driver {
            write!(f, "driver {driver}, ")?;
        }
        write!(f, "CUDA {}.{}, {:.1} GiB of memory, {:.1} free", cuda.0, cuda.1, gib(self.total), gib(self.free))
    }
}

/// The driver's version, from the first line of `/proc/driver/nvidia/version`: the first word of digits and points.
#[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "only a GPU has a driver"))]
pub(super) fn driver_version(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// What is wrong where an error's text has one of these words, and what to do about it.
const MEANINGS: &[(&[&str], &str, &str)] = &[
    (
        &["CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_STUB_LIBRARY", "CUDA_ERROR_NOT_INITIALIZED"],
        "there is no NVIDIA GPU, or its driver is not there",
        "see whether `nvidia-smi` lists a GPU (a container has one only if it was started with `--gpus all`), or set \
         `device: cpu`",
    ),
    (
        &["CUDA_ERROR_INVALID_DEVICE"],
        "there is no GPU of this number",
        "`nvidia-smi -L` lists them, from 0 (`CUDA_VISIBLE_DEVICES` hides some and counts the others anew)",
    ),
    (
        &["CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA_ERROR_DEVICE_NOT_LICENSED"],
        "the GPU is taken by another program, or closed to this one",
        "`nvidia-smi` lists who uses it; name another as `device: cuda:1`, or set `device: cpu`",
    ),
    (
        &["CUDA_ERROR_SYSTEM_NOT_READY"],
        "the driver's services are not running",
        "on a machine with NVSwitch (HGX) start `nvidia-fabricmanager`, of the driver's version; or set `device: cpu`",
    ),
    (
        &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"],
        "the driver in the kernel and the driver's library are of different versions",
        "restart the machine, as after each update of the driver; in a container, remove the libcuda.so.1 that its image brings",
    ),
    (
        &[
            "is newer than the driver's CUDA",
            "which is older than CUDA",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
            "cudaErrorInsufficientDriver",
        ],
        "the driver is too old for the NVRTC or the cuBLAS that was found",
        "update the driver (CUDA 12.0 needs 525 or newer, 13.0 needs 580), or install cuBLAS and NVRTC of the CUDA version that \
         `nvidia-smi` shows, or of an older one, and set `EQUIPOISE_CUDA_PATH` to where they are",
    ),
    (
        &[
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "CUDA_ERROR_INVALID_PTX",
            "CUDA_ERROR_INVALID_IMAGE",
            "CUBLAS_STATUS_ARCH_MISMATCH",
            "no kernel for compute capability",
            "invalid value for --gpu-architecture",
        ],
        "there are no kernels for the architecture of this GPU",
        "the oldest that works is compute capability 7.5 (RTX 20, T4); `nvidia-smi --query-gpu=compute_cap --format=csv` tells \
         yours; or set `device: cpu`",
    ),
    (
        &["CUDA library not found: the driver"],
        "the NVIDIA driver is not installed",
        "install it (a container needs `--gpus all`; `nvidia-smi` must work there), or set `device: cpu`",
    ),
    (
        &["CUDA library not found"],
        "a library of CUDA is missing",
        "install cuBLAS and NVRTC (they are in the CUDA toolkit, and in the PyPI packages nvidia-cublas and nvidia-cuda-nvrtc), \
         and set `EQUIPOISE_CUDA_PATH` to the toolkit, the virtual environment or the folder that they are in; or set \
         `device: cpu`",
    ),
    (
        &["CUDA library without a function: the driver", "CUDA library that does not load: the driver"],
        "the NVIDIA driver's library is damaged, or is something else under its name",
        "install the NVIDIA driver again, or let `LD_LIBRARY_PATH` name no folder with another libcuda.so.1; or set \
         `device: cpu`",
    ),
    (
        &["CUDA library without a function"],
        "a library of CUDA is too old, or is something else under its name",
        "set `EQUIPOISE_CUDA_PATH` to a CUDA 12 or 13 toolkit, or to a virtual environment with nvidia-cublas and \
         nvidia-cuda-nvrtc; or set `device: cpu`",
    ),
    (
        &["CUDA library that does not load"],
        "a library of CUDA is damaged or incomplete",
        "install it again, or set `EQUIPOISE_CUDA_PATH` to another toolkit or virtual environment; or set `device: cpu`",
    ),
    (
        // Before the next, whose word the driver says here too.
        &["pinning memory of the CPU"],
        "the CPU's memory is full, or no more of it may be pinned",
        "set `training.gradient_checkpointing: layer`, which keeps on the GPU what `offload` puts there, or a smaller \
         `training.micro_batch_size` or `data.max_seq_len`; `ulimit -l` tells how much may be pinned",
    ),
    (
        &["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"],
        "the GPU's memory is full",
        "set a smaller `training.micro_batch_size` (with more `training.gradient_accumulation_steps` the result is the same), \
         `training.gradient_checkpointing: offload`, a smaller `data.max_seq_len` or `quantization.type`; `nvidia-smi` lists who else uses the memory",
    ),
    (
        &["CUDA_ERROR_JIT_COMPILER_NOT_FOUND"],
        "the driver's own compiler, libnvidia-ptxjitcompiler, is missing",
        "install the driver whole (a container needs `NVIDIA_DRIVER_CAPABILITIES=compute,utility`)",
    ),
    (
        &["NVRTC_ERROR"],
        "NVRTC, the compiler of the kernels, failed",
        "see that the libnvrtc that is named and the libnvrtc-builtins beside it are of one CUDA toolkit; \
         `EQUIPOISE_CUDA_PATH` chooses another",
    ),
    (
        &["CUBLAS_STATUS_NOT_INITIALIZED"],
        "cuBLAS could not start",
        "free some of the GPU's memory (`nvidia-smi` lists who uses it), and see that libcublas is of a CUDA that the driver can \
         run",
    ),
];

/// An error of a GPU in a user's words, where it is one that a user can do something about; else as it was.
pub fn explain(error: Error) -> Error {
    match error {
        Error::Candle(inner) => {
            let text = inner.to_string();
            explain_text(&text).unwrap_or(Error::Candle(inner))
        }
        other => other,
    }
}

/// The meaning of an error's text.
fn explain_text(text: &str) -> Option<Error> {
    let (_, message, help) = MEANINGS.iter().find(|(words, ..)| words.iter().any(|word| text.contains(word)))?;
    // What follows the first line is a backtrace or the compiler's log.
    let first = text.lines().next().unwrap_or_default();
    Some(Error::invalid(format!("device: {message} ({first})")).with_help(*help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(text: &str) -> (String, String) {
        let error = explain(Error::Candle(candle_core::Error::Msg(text.into())));
        (error.to_string(), error.help().unwrap_or_default().to_owned())
    }

    #[test]
    fn errors_that_a_user_can_mend_say_how() {
        for (text, message, help) in [
            (
                "opening the driver: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)",
                "there is no NVIDIA GPU",
                "--gpus all",
            ),
            (
                "finding the GPU: CUDA_ERROR_INVALID_DEVICE (invalid device ordinal)",
                "no GPU of this number",
                "nvidia-smi -L",
            ),
            (
                "loading kernels: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the provided PTX was compiled with an unsupported toolchain.)",
                "the driver is too old",
                "update the driver",
            ),
            (
                "loading kernels: CUDA_ERROR_NO_BINARY_FOR_GPU (no kernel image is available)",
                "no kernels for the architecture",
                "7.5",
            ),
            ("no kernel for compute capability 7.0", "no kernels for the architecture", "7.5"),
            ("allocating memory: CUDA_ERROR_OUT_OF_MEMORY (out of memory)", "memory is full", "micro_batch_size"),
            ("CUDA library not found: cuBLAS, libcublas", "a library of CUDA is missing", "EQUIPOISE_CUDA_PATH"),
            ("CUDA library not found: the driver, libcuda.so.1", "driver is not installed", "--gpus all"),
            (
                "CUDA library without a function: cuBLAS, libcublas, cublasGemmEx",
                "a library of CUDA is too old",
                "EQUIPOISE_CUDA_PATH",
            ),
            (
                "pinning memory of the CPU: CUDA_ERROR_OUT_OF_MEMORY (out of memory)",
                "the CPU's memory is full",
                "gradient_checkpointing: layer",
            ),
            ("multiplying matrices: CUBLAS_STATUS_ALLOC_FAILED", "memory is full", "micro_batch_size"),
            (
                "compiling rows.cu: NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
                "NVRTC, the compiler of the kernels, failed",
                "EQUIPOISE_CUDA_PATH",
            ),
            (
                "compiling rows.cu: NVRTC_ERROR_INVALID_OPTION\nnvrtc: error: invalid value for --gpu-architecture (-arch)",
                "no kernels for the architecture",
                "compute_cap",
            ),
        ] {
            let (got, its_help) = explained(text);
            assert!(got.starts_with("device: ") && got.contains(message), "{text}: {got}");
            assert!(its_help.contains(help), "{text}: {its_help}");
            assert_eq!(explain(Error::Candle(candle_core::Error::Msg(text.into()))).exit_code(), 2);
        }
    }

    #[test]
    fn what_the_driver_said_is_kept_without_the_backtrace() {
        let (got, _) = explained("allocating memory: CUDA_ERROR_OUT_OF_MEMORY (out of memory)\n   0: a frame");
        assert!(got.ends_with("(allocating memory: CUDA_ERROR_OUT_OF_MEMORY (out of memory))"), "{got}");
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        let error = explain(Error::Candle(candle_core::Error::Msg("shapes differ".into())));
        assert!(matches!(error, Error::Candle(_)));
        assert!(matches!(explain(Error::Interrupted), Error::Interrupted));
    }

    #[test]
    fn the_drivers_version_is_read() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12\n";
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x)  Sun Jul 27\n";
        assert_eq!(driver_version(closed).as_deref(), Some("535.129.03"));
        assert_eq!(driver_version(open).as_deref(), Some("580.65.06"));
        assert_eq!(driver_version(""), None);
    }

    #[test]
    fn a_gpu_is_told_in_a_line() {
        let mut gpu = GpuFacts {
            name: "NVIDIA H200".into(),
            capability: (9, 0),
            driver: Some("580.65.06".into()),
            cuda: (13, 0),
            total: 150_000_000_000,
            free: 149_000_000_000,
            libraries: Vec::new(),
        };
        assert_eq!(
            gpu.to_string(),
            "NVIDIA H200, compute capability 9.0, driver 580.65.06, CUDA 13.0, 139.7 GiB of memory, 138.8 free"
        );
        assert!(gpu.has_bf16());
        gpu.capability = (7, 5);
        assert!(!gpu.has_bf16());
    }
}
