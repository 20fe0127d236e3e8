//! Where the arithmetic runs.

use crate::error::{Error, Result};
use candle_core::Device;
use serde::{Deserialize, Serialize};

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
                .ok_or_else(|| format!("`{text}` is no device; expected `auto`, `cpu`, `cuda` or `cuda:N`")),
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
    /// When a GPU is asked for and this build has no CUDA, or the machine no such GPU.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(Device::cuda_if_available(0).unwrap_or(Device::Cpu)),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => {
                Err(Error::invalid("device: `cuda` was asked for, but this binary was built without CUDA")
                    .with_help("build it with `cargo build --release --features cuda`, or set `device: cpu`"))
            }
            Self::Cuda(number) => Device::new_cuda(number).map_err(|error| {
                Error::invalid(format!("device: cannot open GPU {number}: {error}"))
                    .with_help("see what `nvidia-smi` lists, or set `device: cpu`")
            }),
        }
    }
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
