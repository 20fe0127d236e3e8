//! Where the arithmetic runs: the CPU, or a GPU with its memory, kernels and matrix products.

mod arena;
pub mod driver;
mod facts;
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU needs kernels"))]
mod images;
mod memory;
#[cfg(feature = "cuda")]
mod nvidia;

pub use arena::Term;
pub use facts::{GpuFacts, explain};
pub use memory::{Gpu, GpuMemory, Memory, PinnedMemory, Plain, Refusal};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// An open device.
#[derive(Debug, Clone)]
pub enum Device {
    /// The CPU, all cores.
    Cpu,
    /// A GPU.
    Gpu(Gpu),
}

impl Device {
    /// Whether it is the CPU.
    pub const fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// The GPU, if it is one.
    pub const fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu),
        }
    }
}

/// The recipe's `device`: `auto`, `cpu`, `cuda`, or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceConfig {
    /// The first GPU when this build and machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU, all cores.
    Cpu,
    /// The GPU of this number, from 0.
    Cuda(usize),
}

impl TryFrom<String> for DeviceConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is not a device; expected `auto`, `cpu`, `cuda` or `cuda:N`")),
        }
    }
}

impl From<DeviceConfig> for String {
    fn from(config: DeviceConfig) -> Self {
        match config {
            DeviceConfig::Auto => "auto".into(),
            DeviceConfig::Cpu => "cpu".into(),
            DeviceConfig::Cuda(number) => format!("cuda:{number}"),
        }
    }
}

impl DeviceConfig {
    /// Opens the device.
    ///
    /// # Errors
    /// When a GPU is asked for and this build has no CUDA, the machine no such GPU, or driver, libraries and GPU do not fit.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !gpu_is_there() => Ok(Device::Cpu),
            Self::Auto => open_gpu(0).or_else(|error| {
                tracing::warn!("{error}; the CPU is taken instead");
                Ok(Device::Cpu)
            }),
            Self::Cuda(number) => open_gpu(number),
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu_is_there() -> bool {
    nvidia::is_there()
}

#[cfg(not(feature = "cuda"))]
const fn gpu_is_there() -> bool {
    false
}

fn open_gpu(number: usize) -> Result<Device> {
    Ok(Device::Gpu(Gpu::new(open_driver(number)?)))
}

/// The driver of the GPU of this number, for those who put something of their own between it and [`Gpu::new`].
///
/// # Errors
/// As [`DeviceConfig::open`].
#[cfg(feature = "cuda")]
pub fn open_driver(number: usize) -> Result<Box<dyn driver::Driver>> {
    let opened = nvidia::Nvidia::open(number);
    let gpu = opened.map_err(|error| match explain(Error::Candle(error)) {
        Error::Candle(error) => Error::invalid(format!("device: cannot open GPU {number}: {error}"))
            .with_help("see what `nvidia-smi` lists, or set `device: cpu`"),
        explained => explained,
    })?;
    Ok(Box::new(gpu))
}

/// The driver of a GPU: this build has none.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn open_driver(_: usize) -> Result<Box<dyn driver::Driver>> {
    Err(Error::invalid("device: `cuda` was asked for, but this binary was built without CUDA")
        .with_help("build it with `cargo build --release --features cuda`, or set `device: cpu`"))
}

/// Memory that the system could still give, in bytes (`MemAvailable`); `None` where it does not tell.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The most memory this process has held so far, in bytes (`VmHWM`), and what it holds now (`VmRSS`).
///
/// `None` where the system does not tell (it is Linux that does).
pub fn process_memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((field("VmHWM:")?, field("VmRSS:")?))
}
