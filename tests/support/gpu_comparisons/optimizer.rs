//! `AdamW` on the same gradients, to the bit, with its copy in `bf16`; and the norm of the gradients.

use super::{Judge, distance_in_bits, rounded, worse};
use crate::support::random_weights::random;
use candle_core::{Device as Place, Tensor, Var};
use equipoise::error::{Error, Result};
use equipoise::nn::{AdapterParams, Gradients};
use equipoise::ops::cuda::{AdapterMemory, Cuda, GpuModule, GpuUpdate};
use equipoise::ops::{Compute, FrozenWeight};
use equipoise::train::backward::GradientSums;
use equipoise::train::{AdamW, TrainingConfig};

const UPDATES: usize = 4;
const NAMES: [&str; 2] = ["a.lora_A", "a.lora_B"];
/// Both sides add up squares in `f64`.
const NORM: f64 = 1e-9;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    for &sizes in judge.choose(&[(66, 40, 5)][..], &[(4096, 14336, 16), (578, 1537, 7)]) {
        for compute in judge.types()? {
            judge.begin(&format!("adamw {sizes:?}"), compute);
            if let Err(error) = compared(judge, compute, sizes) {
                judge.refused("adamw", compute, error)?;
            }
        }
    }
    Ok(())
}

fn params((inputs, outputs, rank): (usize, usize, usize)) -> Result<AdapterParams> {
    let mut params = AdapterParams::default();
    for (name, shape) in NAMES.into_iter().zip([(rank, inputs), (outputs, rank)]) {
        let numbers = Tensor::from_vec(random(shape.0 * shape.1, 1, 0.3), shape, &Place::Cpu)?;
        params.insert(name.into(), Var::from_tensor(&numbers)?);
    }
    Ok(params)
}

fn memory(params: &AdapterParams) -> Result<&AdapterMemory> {
    params.memory().map(|memory| &**memory).ok_or_else(|| Error::invalid("the adapter is not on the GPU"))
}

/// Gradients are made on the GPU, and the CPU gets the same.
fn compared(judge: &mut Judge<'_>, compute: Compute, sizes: (usize, usize, usize)) -> Result<()> {
    let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
    let (cpu, mut gpu, cuda) = (params(sizes)?, params(sizes)?, judge.cuda(compute));
    gpu.move_to(judge.gpu)?;
    let (mut on_cpu, mut on_gpu) = (AdamW::new(&config, &cpu), AdamW::new(&config, &gpu));
    let memory = memory(&gpu)?;
    let (mut values, mut norms, mut copies) = (0f64, 0f64, 0f64);
    for step in 0..UPDATES {
        fill(&cuda, memory, sizes, step as u64)?;
        let mut same = Gradients::default();
        memory.gradients()?.into_iter().for_each(|(name, numbers)| same.put(&name, numbers));
        let sums = GradientSums::Gpu(memory);
        norms = worse(norms, (sums.norm()? / same.norm() - 1.0).abs());
        on_gpu.update(&gpu, &sums, 0.5, 1e-2)?;
        on_cpu.update(&cpu, &GradientSums::Cpu(same), 0.5, 1e-2)?;
        let (got, expected) = (memory.get()?, cpu.to_tensors()?);
        for (name, got) in &got {
            values = worse(values, distance_in_bits(got, &numbers(&expected[name])?));
        }
        let copy = rounded_copy(&cuda, memory, sizes)?;
        copies = worse(copies, distance_in_bits(&copy, &rounded(&numbers(&expected[NAMES[0]])?, compute)));
    }
    let (got, expected) = (on_gpu.state()?, on_cpu.state()?);
    let mut moments = 0f64;
    for (name, expected) in &expected {
        moments = worse(moments, distance_in_bits(&numbers(&got[name])?, &numbers(expected)?));
    }
    let of = format!("{sizes:?}");
    judge.tell(&format!("adamw: values {of}"), compute, values, 0.0);
    judge.tell(&format!("adamw: values as factors {of}"), compute, copies, 0.0);
    judge.tell(&format!("adamw: moments {of}"), compute, moments, 0.0);
    judge.tell(&format!("gradient norm {of}"), compute, norms, NORM);
    Ok(())
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Sums of gradients, as a linear layer makes them.
fn fill(cuda: &Cuda, memory: &AdapterMemory, (inputs, outputs, rank): (usize, usize, usize), seed: u64) -> Result<()> {
    const TOKENS: usize = 33;
    // Nothing is multiplied with the weight: no gradient of the input is wanted.
    let weight = FrozenWeight::hollow(outputs, inputs);
    let update = GpuUpdate { names: NAMES, rank, scale: 2.0, dropout: None };
    let module = [GpuModule { weight: &weight, bias: None, update: Some(update) }];
    memory.begin_step()?;
    let operands = memory.operands(cuda.compute)?;
    let x = cuda.upload(&random(TOKENS * inputs, 6 + seed, 1.0), inputs)?;
    let dy = cuda.upload(&random(TOKENS * outputs, 60 + seed, 1e-3), outputs)?;
    let down = cuda.down(&module, &operands, &x)?;
    cuda.linear_backward(&module, &operands, (&x, &down), &dy, false)?;
    Ok(())
}

/// `A` as products see it: its product with the unit matrix, which is exact.
fn rounded_copy(cuda: &Cuda, memory: &AdapterMemory, (inputs, _, rank): (usize, usize, usize)) -> Result<Vec<f32>> {
    let weight = FrozenWeight::hollow(2, inputs);
    let update = GpuUpdate { names: NAMES, rank, scale: 1.0, dropout: None };
    let module = [GpuModule { weight: &weight, bias: None, update: Some(update) }];
    let unit: Vec<f32> = (0..inputs * inputs).map(|i| f32::from(u8::from(i % (inputs + 1) == 0))).collect();
    let transposed = cuda.down(&module, &memory.operands(cuda.compute)?, &cuda.upload(&unit, inputs)?)?;
    let transposed = cuda.download(&transposed)?;
    Ok((0..rank * inputs).map(|i| transposed[i % inputs * rank + i / inputs]).collect())
}
