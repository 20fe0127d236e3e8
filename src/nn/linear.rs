//! A frozen linear layer, with an adapter or without, and groups of them.

use super::context::ForwardContext;
use super::gradients::Gradients;
use super::params::peft_names;
use crate::ops::element::Element;
use crate::ops::{
    Buffer, Dropout, FrozenVector, FrozenWeight, Group, Module, SavedInput, Update, UpdateGradient, numbers,
};
use crate::rng::name_key;
use candle_core::{DType, Device, Result, Var};

/// The trainable part of a layer: `scale · B(A(dropout(x)))`.
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    /// `[r, in]`
    pub a: Var,
    /// `[out, r]`
    pub b: Var,
    /// `lora_alpha / r`, or over `√r`.
    pub scale: f64,
    /// Share of the inputs that is zeroed in training.
    pub dropout: f64,
    /// The layer's key for dropout masks.
    pub key: u64,
    /// PEFT's names of `a` and `b`.
    pub names: [String; 2],
}

impl LoraAdapter {
    /// An adapter of this rank that holds nothing: for plans.
    ///
    /// # Errors
    /// Never on the CPU.
    pub(super) fn hollow(r: usize, (scale, dropout): (f64, f64), path: &str) -> Result<Self> {
        let empty = |shape: (usize, usize)| Var::zeros(shape, DType::F32, &Device::Cpu);
        Ok(Self { a: empty((r, 0))?, b: empty((0, r))?, scale, dropout, key: name_key(path), names: peft_names(path) })
    }

    /// `r`
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// `y = x·Wᵀ + bias + scale·B(A(dropout(x)))`: frozen `W` and bias, and the adapter where the layer is a target.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The frozen matrix.
    pub weight: FrozenWeight,
    /// The frozen bias, `[out]`.
    pub bias: Option<FrozenVector>,
    /// The adapter of a target module.
    pub adapter: Option<LoraAdapter>,
}

/// Linear layers that share an input, as one: their outputs lie side by side.
#[derive(Debug, Clone, Copy)]
pub struct LinearGroup<'a>(pub &'a [Linear]);

impl LinearGroup<'_> {
    /// Outputs of all layers.
    pub fn outputs(&self) -> usize {
        self.0.iter().map(|linear| linear.weight.rows()).sum()
    }

    /// `D(x)·Aᵀ` of the adapters, for the other passes.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn down<E: Element>(&self, x: &[E], context: &ForwardContext<'_, E>) -> Result<Buffer<E>> {
        self.with(context, |group| Ok(group.down(x)))
    }

    /// The outputs for `x: [m, in]`.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn forward<E: Element>(&self, saved: SavedInput<'_, E>, context: &ForwardContext<'_, E>) -> Result<Buffer<E>> {
        self.with(context, |group| {
            let mut y = context.take(self.outputs());
            group.forward(saved, &mut y)?;
            Ok(y)
        })
    }

    /// Adds the outputs to `y`.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn forward_add<E: Element>(
        &self,
        saved: SavedInput<'_, E>,
        y: &mut [f32],
        context: &ForwardContext<'_, E>,
    ) -> Result<()> {
        self.with(context, |group| group.forward_add(saved, y))
    }

    /// Writes the gradient of the input for `dy` to `dx`, if given; the adapters' gradients are added to `gradients`.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn backward<E: Element>(
        &self,
        saved: SavedInput<'_, E>,
        dy: &[E],
        dx: Option<&mut [f32]>,
        context: &ForwardContext<'_, E>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.with(context, |group| {
            let mut taken: Vec<Option<[Buffer<f32>; 2]>> = self
                .0
                .iter()
                .map(|linear| {
                    let adapter = linear.adapter.as_ref().filter(|_| context.adapter)?;
                    let [a, b] = &adapter.names;
                    Some([gradients.take(a, adapter.a.elem_count()), gradients.take(b, adapter.b.elem_count())])
                })
                .collect();
            let mut updates: Vec<_> =
                taken.iter_mut().map(|pair| pair.as_mut().map(|[a, b]| UpdateGradient { a, b })).collect();
            group.backward(saved, dy, dx, &mut updates)?;
            for (linear, taken) in self.0.iter().zip(taken) {
                if let (Some(adapter), Some([a, b])) = (&linear.adapter, taken) {
                    gradients.put(&adapter.names[0], a);
                    gradients.put(&adapter.names[1], b);
                }
            }
            Ok(())
        })
    }

    fn with<E: Element, R>(
        &self,
        context: &ForwardContext<'_, E>,
        f: impl FnOnce(&Group<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut held = Vec::with_capacity(self.0.len());
        for linear in self.0 {
            let adapter = match linear.adapter.as_ref().filter(|_| context.adapter) {
                Some(adapter) => Some((adapter, numbers(&adapter.a)?, numbers(&adapter.b)?)),
                None => None,
            };
            held.push((linear, adapter));
        }
        let modules: Vec<Module<'_>> = held
            .iter()
            .map(|(linear, adapter)| Module {
                weight: &linear.weight,
                bias: linear.bias.as_ref().map(FrozenVector::numbers),
                update: adapter.as_ref().map(|(adapter, a, b)| Update {
                    a,
                    b,
                    rank: a.len() / linear.weight.columns(),
                    scale: adapter.scale as f32,
                    dropout: context.dropout_keys.filter(|_| adapter.dropout > 0.0).map(|row_keys| Dropout {
                        probability: adapter.dropout as f32,
                        row_keys,
                        layer_key: adapter.key,
                    }),
                }),
            })
            .collect();
        f(&Group { modules: &modules, pool: context.pool, capacity: context.capacity })
    }
}
