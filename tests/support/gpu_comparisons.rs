//! What a GPU computes against what the CPU computes: each operation by itself, then whole steps, in `f32` and in `bf16`.
//!
//! It works on any GPU: on a real one in `tests/gpu/program.rs`, in tests on one that is none (`host_gpu`). The CPU's side is
//! always its own operation in `f32`, on inputs that `bf16` has: what `bf16` costs on the GPU is all in the error.

mod attention;
mod branch;
mod head;
mod heads;
mod linear;
mod optimizer;
mod rows;
mod steps;

pub use steps::Both;

use clap::ValueEnum;
use equipoise::device::{Device, Gpu};
use equipoise::error::{Error, Result};
use equipoise::ops::Compute;
use equipoise::ops::cuda::Cuda;
use half::bf16;

/// How far `f32` may be from the CPU's: `‖gpu − cpu‖ / ‖cpu‖`.
const F32: f64 = 1e-4;
/// How far `bf16` may be.
const BF16: f64 = 2e-2;

/// One result of a GPU, and how far it is from the CPU's.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What was computed.
    pub name: String,
    /// `f32` or `bf16`.
    pub dtype: &'static str,
    /// `‖gpu − cpu‖ / ‖cpu‖`; NaN where there was no result.
    pub error: f64,
    /// The most that is right.
    pub tolerance: f64,
    /// Of a whole step in `bf16`: how far the CPU's own step in `bf16` is from its step in `f32`.
    #[cfg_attr(test, expect(dead_code, reason = "a test shows it by Debug"))]
    pub cpu_error: Option<f64>,
    /// Why there was no result.
    pub failure: Option<String>,
}

impl Comparison {
    /// Whether the error is within its tolerance.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Small sizes: for a GPU that is none.
    Small,
    /// The sizes of real models.
    #[cfg_attr(test, expect(dead_code, reason = "tests have no GPU"))]
    Whole,
}

/// What is compared together, in a process of its own on a real GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Theme {
    /// Operations on rows, and dequantization.
    Rows,
    /// Products with frozen weights and adapters.
    Linear,
    Attention,
    /// The head and the loss.
    Head,
    Optimizer,
    /// Whole steps of small models.
    Steps,
}

impl Theme {
    fn compare(self, judge: &mut Judge<'_>) -> Result<()> {
        match self {
            Self::Rows => rows::compare(judge),
            Self::Linear => linear::compare(judge),
            Self::Attention => attention::compare(judge),
            Self::Head => head::compare(judge),
            Self::Optimizer => optimizer::compare(judge),
            Self::Steps => steps::compare(judge),
        }
    }
}

/// What comparing tells as it goes.
pub enum Event {
    /// What the GPU computes next, and in which type.
    Begin(String, &'static str),
    /// How far a result is off.
    Ended(Comparison),
}

/// Makes the comparisons of some themes; nothing on the CPU. What fails is an error of its own, and the next one is made: unless
/// the GPU takes no more work, as after an illegal address. Returns whether all were made.
pub fn compare(device: &Device, themes: &[Theme], on_event: &mut dyn FnMut(Event), extent: Extent) -> bool {
    let Device::Gpu(gpu) = device else { return true };
    let mut judge = Judge { device, gpu, extent, on_event, lost: false };
    for theme in themes {
        let done = theme.compare(&mut judge);
        if let Err(error) = done
            && !judge.lost
        {
            let _ = judge.refused(&format!("{theme:?}: what comes before a comparison"), Compute::F32, error);
        }
        if judge.lost {
            return false;
        }
        gpu.trim();
    }
    true
}

/// Calls what is compared, and tells how far it is off.
struct Judge<'a> {
    device: &'a Device,
    gpu: &'a Gpu,
    extent: Extent,
    on_event: &'a mut dyn FnMut(Event),
    /// Whether the GPU takes no more work.
    lost: bool,
}

impl Judge<'_> {
    /// One or the other, by extent.
    fn choose<T>(&self, small: T, whole: T) -> T {
        match self.extent {
            Extent::Small => small,
            Extent::Whole => whole,
        }
    }

    /// The types that this GPU computes in.
    fn types(&self) -> Result<Vec<Compute>> {
        Ok(if self.gpu.facts()?.has_bf16() { vec![Compute::F32, Compute::Bf16] } else { vec![Compute::F32] })
    }

    fn cuda(&self, compute: Compute) -> Cuda {
        Cuda { gpu: self.gpu.clone(), compute, capacity: 0 }
    }

    /// Results of an operation in each type, against those of the CPU: each has a name, and all say what they are `of`.
    fn each<const N: usize>(
        &mut self,
        names: [&str; N],
        of: &str,
        expected: &[Vec<f32>; N],
        run: impl Fn(&Cuda) -> Result<[Vec<f32>; N]>,
    ) -> Result<()> {
        self.each_by(names, of, run, |i, got, compute| {
            (distance(got, &expected[i]), if compute == Compute::F32 { F32 } else { BF16 })
        })
    }

    /// Results that must be the CPU's to the bit, once that is rounded to the type.
    fn each_bit<const N: usize>(
        &mut self,
        names: [&str; N],
        of: &str,
        expected: &[Vec<f32>; N],
        run: impl Fn(&Cuda) -> Result<[Vec<f32>; N]>,
    ) -> Result<()> {
        self.each_by(names, of, run, |i, got, compute| (distance_in_bits(got, &rounded(&expected[i], compute)), 0.0))
    }

    /// Results of an operation in each type; `judged` tells the error of the one of this number, and its tolerance.
    fn each_by<const N: usize>(
        &mut self,
        names: [&str; N],
        of: &str,
        run: impl Fn(&Cuda) -> Result<[Vec<f32>; N]>,
        judged: impl Fn(usize, &[f32], Compute) -> (f64, f64),
    ) -> Result<()> {
        for compute in self.types()? {
            self.begin(&format!("{} {of}", names[0]), compute);
            match run(&self.cuda(compute)) {
                Ok(got) => {
                    for (i, (name, got)) in names.iter().zip(&got).enumerate() {
                        let (error, tolerance) = judged(i, got, compute);
                        self.tell(&format!("{name} {of}"), compute, error, tolerance);
                    }
                }
                Err(error) => self.refused(&format!("{} {of}", names.join(", ")), compute, error)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, compute: Compute) {
        (self.on_event)(Event::Begin(name.to_owned(), compute.name()));
    }

    fn tell(&mut self, name: &str, compute: Compute, error: f64, tolerance: f64) {
        self.tell_beside(name, compute, error, tolerance, None);
    }

    fn tell_beside(&mut self, name: &str, compute: Compute, error: f64, tolerance: f64, cpu_error: Option<f64>) {
        let (name, dtype) = (name.to_owned(), compute.name());
        (self.on_event)(Event::Ended(Comparison { name, dtype, error, tolerance, cpu_error, failure: None }));
    }

    fn failed(&mut self, name: &str, compute: Compute, error: &dyn std::fmt::Display) {
        // Without candle's backtrace.
        let text = error.to_string();
        let (name, failure) = (name.to_owned(), text.split("\n   0: ").next().map(str::to_owned));
        let (dtype, error) = (compute.name(), f64::NAN);
        (self.on_event)(Event::Ended(Comparison { name, dtype, error, tolerance: 0.0, cpu_error: None, failure }));
    }

    /// As [`Self::failed`]; an error where the GPU takes no more work.
    fn refused(&mut self, name: &str, compute: Compute, error: Error) -> Result<()> {
        self.failed(name, compute, &error);
        self.lost = self.gpu.synchronize().is_err();
        if self.lost { Err(error) } else { Ok(()) }
    }
}

/// As a type holds them.
fn rounded(numbers: &[f32], compute: Compute) -> Vec<f32> {
    match compute {
        Compute::F32 => numbers.to_vec(),
        Compute::Bf16 => numbers.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    }
}

/// The larger error; NaN is larger than all (`f64::max` passes over it).
fn worse(a: f64, b: f64) -> f64 {
    if b <= a || a.is_nan() { a } else { b }
}

/// `‖got − expected‖ / ‖expected‖`; infinite for another count of numbers.
fn distance(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let (mut apart, mut size) = (0f64, 0f64);
    for (&got, &expected) in got.iter().zip(expected) {
        apart += (f64::from(got) - f64::from(expected)).powi(2);
        size += f64::from(expected).powi(2);
    }
    (apart / size.max(1e-60)).sqrt()
}

/// Zero only where all bits are the same (a NaN is a NaN); else the distance of the finite numbers, or infinite where others
/// are finite.
fn distance_in_bits(got: &[f32], expected: &[f32]) -> f64 {
    let same = |(got, expected): (&f32, &f32)| got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
    if got.len() == expected.len() && got.iter().zip(expected).all(same) {
        return 0.0;
    }
    if got.iter().zip(expected).any(|(got, expected)| got.is_finite() != expected.is_finite()) {
        return f64::INFINITY;
    }
    let finite = |numbers: &[f32]| -> Vec<f32> { numbers.iter().copied().filter(|x| x.is_finite()).collect() };
    distance(&finite(got), &finite(expected)).max(f64::EPSILON)
}
