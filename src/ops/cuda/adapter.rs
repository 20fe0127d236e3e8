//! An adapter on a GPU: all its tensors in one piece of memory, so that an update is one launch.

use super::programs;
use super::rows::{Cuda, address};
use crate::device::driver::{Argument, Launch, Matrix, Number, Program, Work};
use crate::device::{Gpu, Memory};
use crate::ops::Compute;
use candle_core::{Error, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers that a tensor's first is a multiple of: 16 bytes of `bf16`.
const ALIGNMENT: usize = 8;
/// Threads of a block.
const THREADS: u32 = 256;
/// Numbers that a block of the optimizer takes.
const UPDATE_NUMBERS: usize = 4 * THREADS as usize;
/// Numbers that a block of a conversion takes.
const CONVERT_NUMBERS: usize = 8 * THREADS as usize;
/// Blocks that add up squares, each to a number of its own.
const NORM_BLOCKS: usize = 512;

/// Where a tensor lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: usize,
    rows: usize,
    columns: usize,
}

/// The tensors of an adapter in `f32`; in training also their gradients, their moments, and a copy rounded to `bf16`.
#[derive(Debug)]
pub struct AdapterMemory {
    gpu: Gpu,
    places: BTreeMap<String, Place>,
    count: usize,
    values: Memory,
    rounded: Mutex<Option<Memory>>,
    training: Mutex<Option<Training>>,
}

#[derive(Debug)]
struct Training {
    gradient: Memory,
    first: Memory,
    second: Memory,
    /// The tensors that a gradient was added to.
    touched: BTreeSet<String>,
}

/// The numbers of one update that are the same for all tensors, on the CPU and on a GPU; the formula is with `train::AdamW`.
#[derive(Debug, Clone, Copy)]
pub struct AdamWFactors {
    /// What gradients are multiplied by.
    pub gradient: f32,
    /// `β₁`
    pub beta1: f32,
    /// `β₂`
    pub beta2: f32,
    /// `1 - β₁`, rounded once: in `f32`, `1 - 0.999` is wrong in the fifth digit.
    pub rest1: f32,
    /// `1 - β₂`
    pub rest2: f32,
    /// `√(1 - β₂ᵗ)`
    pub correction: f32,
    /// `ε`
    pub epsilon: f32,
    /// `lr / (1 - β₁ᵗ)`
    pub step: f32,
    /// `1 - lr·λ`
    pub kept: f32,
}

/// The tensors as factors of products.
#[derive(Debug)]
pub struct Operands<'a> {
    adapter: &'a AdapterMemory,
    address: u64,
    number: Number,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AdapterMemory {
    /// Room for tensors of these names and shapes, in this order: those that follow each other can be one factor.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn new<'n>(gpu: &Gpu, tensors: impl Iterator<Item = (&'n str, (usize, usize))>) -> Result<Self> {
        let (mut places, mut count) = (BTreeMap::new(), 0);
        for (name, (rows, columns)) in tensors {
            places.insert(name.to_owned(), Place { first: count, rows, columns });
            count += (rows * columns).next_multiple_of(ALIGNMENT);
        }
        let values = gpu.zeros(4 * count)?;
        Ok(Self { gpu: gpu.clone(), places, count, values, rounded: Mutex::default(), training: Mutex::default() })
    }

    /// No tensor at all.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn none(gpu: &Gpu) -> Result<Self> {
        Self::new(gpu, std::iter::empty())
    }

    /// Sets all tensors; `numbers` gives those of a name.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn set(&self, numbers: impl Fn(&str) -> Result<Vec<f32>>) -> Result<()> {
        self.write(&self.values, &numbers)?;
        // The copy is of the old numbers.
        *lock(&self.rounded) = None;
        Ok(())
    }

    /// The numbers of all tensors.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn get(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        self.read(&self.values)
    }

    fn write(&self, memory: &Memory, numbers: &impl Fn(&str) -> Result<Vec<f32>>) -> Result<()> {
        let mut flat = vec![0f32; self.count];
        for (name, place) in &self.places {
            let (numbers, count) = (numbers(name)?, place.rows * place.columns);
            if numbers.len() != count {
                bail!("internal: {} numbers for `{name}` of {count}", numbers.len());
            }
            flat[place.first..][..count].copy_from_slice(&numbers);
        }
        memory.write(0, crate::device::Plain::bytes(&flat))
    }

    fn read(&self, memory: &Memory) -> Result<BTreeMap<String, Vec<f32>>> {
        let flat = memory.read::<f32>(0, self.count)?;
        let of = |place: &Place| flat[place.first..][..place.rows * place.columns].to_vec();
        Ok(self.places.iter().map(|(name, place)| (name.clone(), of(place))).collect())
    }

    /// The tensors as factors of products in a type.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn operands(&self, compute: Compute) -> Result<Operands<'_>> {
        let address = match compute {
            Compute::F32 => self.values.address(),
            Compute::Bf16 => {
                let mut rounded = lock(&self.rounded);
                if rounded.is_none() {
                    let memory = self.gpu.allocate(2 * self.count)?;
                    self.round(&memory)?;
                    *rounded = Some(memory);
                }
                rounded.as_ref().map_or(0, Memory::address)
            }
        };
        Ok(Operands { adapter: self, address, number: compute.number() })
    }

    fn round(&self, into: &Memory) -> Result<()> {
        let cuda = Cuda { gpu: self.gpu.clone(), compute: Compute::Bf16, capacity: 0 };
        let grid = [blocks(self.count, CONVERT_NUMBERS)?, 1, 1];
        let arguments = [address(&self.values), address(into), Argument::U64(self.count as u64)];
        let work = Work { bytes: 6 * self.count as u64, flop: 0 };
        cuda.launch(&programs::rows(), "convert", (grid, THREADS), 0, &arguments, work)
    }

    /// Sets all gradients to zero; the first time, also the moments.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn begin_step(&self) -> Result<()> {
        let mut training = lock(&self.training);
        if let Some(training) = &mut *training {
            training.touched.clear();
            return training.gradient.zero();
        }
        let zeros = || self.gpu.zeros(4 * self.count);
        let (gradient, first, second) = (zeros()?, zeros()?, zeros()?);
        *training = Some(Training { gradient, first, second, touched: BTreeSet::new() });
        Ok(())
    }

    fn with_training<R>(&self, f: impl FnOnce(&mut Training) -> Result<R>) -> Result<R> {
        match &mut *lock(&self.training) {
            Some(training) => f(training),
            None => bail!("internal: no step was begun"),
        }
    }

    /// How many tensors a gradient was added to.
    ///
    /// # Errors
    /// Before the first step.
    pub fn touched(&self) -> Result<usize> {
        self.with_training(|training| Ok(training.touched.len()))
    }

    /// The gradients of all tensors.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gradients(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        self.with_training(|training| self.read(&training.gradient))
    }

    /// `√Σ g²` over all gradients, summed up in `f64`: one launch.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gradient_norm(&self) -> Result<f64> {
        self.with_training(|training| {
            let partial = self.gpu.allocate(8 * NORM_BLOCKS)?;
            let arguments = [address(&training.gradient), address(&partial), Argument::U64(self.count as u64)];
            self.launch(&programs::adamw(), "sum_of_squares", NORM_BLOCKS as u32, &arguments, 4)?;
            Ok(partial.read::<f64>(0, NORM_BLOCKS)?.into_iter().sum::<f64>().sqrt())
        })
    }

    /// One update of all tensors: one launch.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn update(&self, f: AdamWFactors) -> Result<()> {
        let rounded = lock(&self.rounded);
        self.with_training(|training| {
            let numbers = [f.gradient, f.beta1, f.beta2, f.rest1, f.rest2, f.correction, f.epsilon, f.step, f.kept];
            let mut arguments = vec![
                address(&self.values),
                Argument::Address(rounded.as_ref().map_or(0, Memory::address)),
                address(&training.gradient),
                address(&training.first),
                address(&training.second),
                Argument::U64(self.count as u64),
            ];
            arguments.extend(numbers.map(Argument::F32));
            // Gradients are read; values and moments are read and written.
            let bytes = if rounded.is_some() { 30 } else { 28 };
            self.launch(&programs::adamw(), "adamw", blocks(self.count, UPDATE_NUMBERS)?, &arguments, bytes)
        })
    }

    /// The first and the second moments of all tensors.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn moments(&self) -> Result<[BTreeMap<String, Vec<f32>>; 2]> {
        self.begin_if_new()?;
        self.with_training(|training| Ok([self.read(&training.first)?, self.read(&training.second)?]))
    }

    /// Sets the first and the second moments.
    ///
    /// # Errors
    /// When one is missing, or the memory is full.
    pub fn set_moments(&self, moments: [&BTreeMap<String, Vec<f32>>; 2]) -> Result<()> {
        self.begin_if_new()?;
        let of = |moments: &BTreeMap<String, Vec<f32>>, name: &str| {
            moments.get(name).cloned().ok_or_else(|| Error::Msg(format!("internal: no moments of `{name}`")))
        };
        self.with_training(|training| {
            self.write(&training.first, &|name: &str| of(moments[0], name))?;
            self.write(&training.second, &|name: &str| of(moments[1], name))
        })
    }

    fn begin_if_new(&self) -> Result<()> {
        let new = lock(&self.training).is_none();
        if new { self.begin_step() } else { Ok(()) }
    }

    /// A kernel without a type in its name, which moves so many bytes for each number of the adapter.
    fn launch(&self, program: &Program, kernel: &str, blocks: u32, arguments: &[Argument], bytes: usize) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let work = Work { bytes: (bytes * self.count) as u64, flop: 0 };
        let launch = Launch { program, kernel, grid: [blocks, 1, 1], block: THREADS, shared_bytes: 0, arguments, work };
        // SAFETY: the arguments are those of the kernels in adamw.cu, and all buffers hold `count` numbers.
        #[expect(unsafe_code, reason = "a kernel's arguments cannot be checked")]
        unsafe {
            self.gpu.launch(launch)
        }
    }
}

fn blocks(count: usize, each: usize) -> Result<u32> {
    u32::try_from(count.div_ceil(each)).map_err(Error::wrap)
}

impl<'a> Operands<'a> {
    /// Of an adapter that has no tensor.
    pub const fn none(adapter: &'a AdapterMemory) -> Self {
        Self { adapter, address: 0, number: Number::F32 }
    }

    fn place(&self, name: &str) -> Result<Place> {
        self.adapter.places.get(name).copied().ok_or_else(|| Error::Msg(format!("internal: no tensor `{name}`")))
    }

    /// A tensor.
    pub(super) fn matrix(&self, name: &str) -> Result<Matrix> {
        let Place { first, rows, columns } = self.place(name)?;
        let address = self.address + (first * self.number.bytes()) as u64;
        Ok(Matrix { address, rows, columns, stride: columns, number: self.number })
    }

    /// A tensor's gradient, to be added to.
    pub(super) fn gradient(&self, name: &str) -> Result<Matrix> {
        let Place { first, rows, columns } = self.place(name)?;
        self.adapter.with_training(|training| {
            training.touched.insert(name.to_owned());
            let address = training.gradient.address() + 4 * first as u64;
            Ok(Matrix { address, rows, columns, stride: columns, number: Number::F32 })
        })
    }
}
