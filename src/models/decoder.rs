//! A decoder as a family's file describes it, and how it is built of a base's tensors.
//!
//! All families are one story: embeddings, layers of attention and a gated MLP, a normalization, the head. A family says its sizes,
//! how its tensors are named, and which optional parts it has; `llama` has none of them.

use super::config::Config;
use super::rope::{RopeDefaults, rope};
use super::{CausalLm, Dimensions};
use crate::error::{Error, Result};
use crate::nn::{Builder, DecoderLayer, FrozenNorm, Join, Linear, Mlp, QkNorm, Residual, Rope, SelfAttention};
use crate::ops::{Activation, AttentionShape};

/// What a family's class in transformers takes where `config.json` says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Width of a head, where it is not hidden size over heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub positions: usize,
    /// `rms_norm_eps`.
    pub epsilon: f64,
    /// `rope_theta`, the base of the rotary frequencies.
    pub theta: f64,
    /// Share of a head that rotates, in families whose heads may rotate in part.
    pub partial: Option<f64>,
    /// `original_max_position_embeddings`, where the class has a default of its own for it.
    pub original: Option<usize>,
    /// The key that names the activation, and the one that is taken where it is not there.
    pub(super) activation: (&'static str, Activation),
}

impl Defaults {
    /// Llama's, which most families share but for one or two.
    pub const LLAMA: Self = Self {
        head_dim: None,
        positions: 2048,
        epsilon: 1e-6,
        theta: 1e4,
        partial: None,
        original: None,
        activation: ("hidden_act", Activation::Silu),
    };

    /// What rotations take.
    pub(super) const fn rope(&self) -> RopeDefaults {
        let Self { theta, partial, original, .. } = *self;
        RopeDefaults { theta, theta_key: "rope_theta", partial, original }
    }
}

/// The names of a layer's tensors, behind `model.layers.N.`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Norms of what attention gets and of what it gives, where there are such.
    pub attention: [Option<&'static str>; 2],
    /// The same of the MLP.
    pub mlp: [Option<&'static str>; 2],
    /// Three layers, or one of all outputs.
    pub qkv: &'static [&'static str],
    pub o: &'static str,
    /// Two layers, or one of all outputs.
    pub gate_up: &'static [&'static str],
    pub down: &'static str,
}

impl Names {
    pub const LLAMA: Self = Self {
        attention: [Some("input_layernorm"), None],
        mlp: [Some("post_attention_layernorm"), None],
        qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        o: "self_attn.o_proj",
        gate_up: &["mlp.gate_proj", "mlp.up_proj"],
        down: "mlp.down_proj",
    };
    /// Norms behind the branches, as OLMo 2 has them.
    pub const POST_NORM: Self = Self {
        attention: [None, Some("post_attention_layernorm")],
        mlp: [None, Some("post_feedforward_layernorm")],
        ..Self::LLAMA
    };
    /// Norms before and behind the branches, as Gemma has them.
    pub const SANDWICH: Self = Self {
        attention: [Some("input_layernorm"), Some("post_attention_layernorm")],
        mlp: [Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")],
        ..Self::LLAMA
    };
}

/// Whether linear layers have a bias.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bias {
    /// As this key says, which says so.
    Key(&'static str, Option<bool>),
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Which runs of numbers queries and keys are normalized over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNormKind {
    /// A head.
    Head,
    /// All heads of a token.
    All,
}

/// What one layer does differently from others.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerKind {
    /// Which of the rotations; without one, positions are not encoded (`NoPE`).
    pub rope: Option<usize>,
    /// Keys that a query sees.
    pub window: Option<usize>,
}

/// A family of models: what its configuration means, and how its tensors are named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// As Hugging Face names it.
    pub model_type: &'static str,
    /// Models of it that people know.
    pub models: &'static str,
    pub names: Names,
    pub defaults: Defaults,
    /// Describes the decoder of a configuration.
    pub describe: fn(&Config<'_>, &Builder<'_>) -> Result<Decoder>,
}

/// A decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    pub dimensions: Dimensions,
    pub epsilon: f64,
    pub activation: Activation,
    /// Of queries, keys and values; of attention's output; of the MLP.
    pub biases: [Bias; 3],
    pub qk_norm: Option<QkNormKind>,
    /// Whether norms are stored without the 1 that is added to their weights.
    pub norms_without_one: bool,
    /// What scores are multiplied by, where it is not `1/√d`.
    pub scale: Option<f64>,
    pub softcap: Option<f64>,
    pub ropes: Vec<Rope>,
    /// Each layer.
    pub kinds: Vec<LayerKind>,
    pub embedding_factor: f64,
    /// What the branches' outputs are multiplied by.
    pub residual_factor: f64,
    pub logits_factor: f64,
    pub logits_softcap: Option<f64>,
    tied: Option<bool>,
}

impl Decoder {
    /// Sizes and keys that all families have; else as Llama is, all layers alike, with one rotation.
    ///
    /// # Errors
    /// For keys that are missing or of a wrong value.
    pub fn new(config: &Config<'_>, defaults: &Defaults, builder: &Builder<'_>) -> Result<Self> {
        let mut decoder = Self::without_rope(config, defaults)?;
        let factors = stored_factors(builder, decoder.dimensions.head_dim)?;
        decoder.ropes = vec![rope(config, None, defaults.rope(), decoder.dimensions.head_dim, factors.as_deref())?];
        Ok(decoder)
    }

    /// As [`Self::new`], with no rotation as yet.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_rope(config: &Config<'_>, defaults: &Defaults) -> Result<Self> {
        let dimensions = dimensions(config, defaults)?;
        let (key, default) = defaults.activation;
        let activation = match config.text(key)? {
            None => default,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "config.json: {key} `{other}` is not supported; expected `silu` or `gelu_pytorch_tanh`"
                )));
            }
        };
        let attention_bias = Bias::Key("attention_bias", config.flag("attention_bias")?);
        Ok(Self {
            dimensions,
            epsilon: config.number("rms_norm_eps")?.unwrap_or(defaults.epsilon),
            activation,
            biases: [attention_bias, attention_bias, Bias::Key("mlp_bias", config.flag("mlp_bias")?)],
            qk_norm: None,
            norms_without_one: false,
            scale: None,
            softcap: None,
            ropes: Vec::new(),
            kinds: vec![LayerKind { rope: Some(0), window: None }; dimensions.layers],
            embedding_factor: 1.0,
            residual_factor: 1.0,
            logits_factor: 1.0,
            logits_softcap: None,
            tied: config.flag("tie_word_embeddings")?,
        })
    }

    /// Gives the layers that slide this window.
    pub fn slide(&mut self, window: usize, sliding: &[bool]) {
        for (kind, sliding) in self.kinds.iter_mut().zip(sliding) {
            kind.window = sliding.then_some(window);
        }
    }

    /// Builds the model of a base's tensors.
    ///
    /// # Errors
    /// For biases that the configuration denies; what [`Builder`] finds is in its `finish`.
    pub fn build(self, names: &Names, builder: &Builder<'_>) -> Result<CausalLm> {
        let leave = [names.attention[1], names.mlp[1]];
        let (kept_outputs, qk_norm) = (leave.iter().flatten().count(), self.qk_norm.is_some());
        let d = Dimensions { kept_outputs, qk_norm, rotations: self.ropes.len(), ..self.dimensions };
        let matrix = |name: &str| builder.matrix(name, d.vocabulary, d.hidden, true);
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        // Tied weights are stored once, under either name. That they are tied may go without saying, but not against it.
        let both = builder.has(embedding) && builder.has(head);
        let tied = self.tied.unwrap_or(!both);
        let embed_tokens = matrix(if tied && !builder.has(embedding) { head } else { embedding })?;
        let lm_head = builder.on_device(&if tied { embed_tokens.clone() } else { matrix(head)? })?;

        let layers = (0..d.layers).map(|i| self.layer(names, builder, i)).collect::<Result<_>>()?;
        let norm = builder.norm("model.norm.weight", d.hidden, self.one(), self.logits_factor as f32)?;
        Ok(CausalLm {
            dimensions: d,
            epsilon: self.epsilon,
            ropes: self.ropes,
            embed_tokens,
            embedding_factor: self.embedding_factor as f32,
            layers,
            norm,
            lm_head,
            logits_softcap: self.logits_softcap.map(|cap| cap as f32),
            adapter_memory: None,
        })
    }

    const fn one(&self) -> f32 {
        if self.norms_without_one { 1.0 } else { 0.0 }
    }

    fn layer(&self, names: &Names, builder: &Builder<'_>, index: usize) -> Result<DecoderLayer> {
        let d = self.dimensions;
        let path = |name: &str| format!("model.layers.{index}.{name}");
        let (query, key) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        let linear = |name: &str, inputs, outputs, bias| Self::linear(builder, &path(name), (inputs, outputs), bias);
        let group = |names: &[&str], outputs: &[usize], bias| -> Result<Vec<Linear>> {
            match names {
                [name] => Ok(vec![linear(name, d.hidden, outputs.iter().sum(), bias)?]),
                _ => names.iter().zip(outputs).map(|(name, outputs)| linear(name, d.hidden, *outputs, bias)).collect(),
            }
        };
        let [qkv_bias, o_bias, mlp_bias] = self.biases;
        let kind = self.kinds[index];
        let mut shape = AttentionShape::new(d.heads, d.kv_heads, d.head_dim);
        shape.scale = self.scale.map_or(shape.scale, |scale| scale as f32);
        shape.softcap = self.softcap.map(|cap| cap as f32);
        shape.window = kind.window;
        let qk_norm = |kind| {
            let [query, key] = if kind == QkNormKind::Head { [d.head_dim; 2] } else { [query, key] };
            let norm = |name: &str, width| builder.norm(&path(name), width, self.one(), 1.0);
            Ok::<_, Error>(QkNorm {
                query: norm("self_attn.q_norm.weight", query)?,
                key: norm("self_attn.k_norm.weight", key)?,
                epsilon: self.epsilon,
            })
        };
        Ok(DecoderLayer {
            index,
            attention: SelfAttention {
                residual: self.residual(builder, index, names.attention)?,
                shape,
                rope: kind.rope,
                qk_norm: self.qk_norm.map(qk_norm).transpose()?,
                qkv: group(names.qkv, &[query, key, key], qkv_bias)?,
                o: linear(names.o, query, d.hidden, o_bias)?,
            },
            mlp: Mlp {
                residual: self.residual(builder, index, names.mlp)?,
                activation: self.activation,
                gate_up: group(names.gate_up, &[d.intermediate; 2], mlp_bias)?,
                down: linear(names.down, d.intermediate, d.hidden, mlp_bias)?,
            },
        })
    }

    /// The ends of a branch, with these norms.
    fn residual(&self, builder: &Builder<'_>, index: usize, [enter, leave]: [Option<&str>; 2]) -> Result<Residual> {
        let norm = |name: &str| {
            let path = format!("model.layers.{index}.{name}.weight");
            let weight = builder.norm(&path, self.dimensions.hidden, self.one(), 1.0)?;
            Ok::<_, Error>(FrozenNorm { weight, epsilon: self.epsilon })
        };
        let join = match leave {
            Some(name) => Join::Normalized(norm(name)?),
            None if self.residual_factor == 1.0 => Join::Sum,
            None => Join::Scaled(self.residual_factor as f32),
        };
        Ok(Residual { enter: enter.map(norm).transpose()?, join })
    }

    fn linear(builder: &Builder<'_>, path: &str, (inputs, outputs): (usize, usize), bias: Bias) -> Result<Linear> {
        let name = format!("{path}.bias");
        let denied = match bias {
            Bias::Always | Bias::Key(_, Some(true)) => None,
            Bias::Key(key, said) => Some((key, said.map_or("does not set", |_| "denies"))),
            Bias::Never => Some(("attention_bias", "of this family knows no")),
        };
        // transformers leaves a bias out that the configuration denies, llama.cpp adds it.
        if let Some((setting, said)) = denied.filter(|_| !builder.is_gguf())
            && builder.has_numbers(&name, outputs)?
        {
            let message = format!(
                "`{name}` is not zero, but config.json {said} `{setting}`: transformers leaves it out, others add it"
            );
            return Err(Error::invalid(message).with_help(format!(
                "set `{setting}` to true in config.json if the model was made with it, or remove these tensors"
            )));
        }
        builder.linear(path, inputs, outputs, matches!(bias, Bias::Always))
    }
}

/// What a GGUF file stores instead of parameters of scaling. In a folder it is a leftover, which transformers leaves alone.
fn stored_factors(builder: &Builder<'_>, head_dim: usize) -> Result<Option<Vec<f32>>> {
    if !builder.is_gguf() || !builder.has("rope_freqs.weight") {
        return Ok(None);
    }
    let factors = builder.tensor("rope_freqs.weight", &[head_dim / 2])?.to_vec1::<f32>()?;
    // A plan reads no tensor, and so has no factors to check.
    Ok(Some(factors).filter(|_| !builder.is_plan()))
}

fn dimensions(config: &Config<'_>, defaults: &Defaults) -> Result<Dimensions> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let d = Dimensions {
        layers: config.size("num_hidden_layers")?,
        hidden,
        intermediate: config.size("intermediate_size")?,
        heads,
        kv_heads: config.count("num_key_value_heads")?.unwrap_or(heads),
        head_dim: config.count("head_dim")?.or(defaults.head_dim).unwrap_or(hidden / heads),
        vocabulary: config.size("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?.unwrap_or(defaults.positions),
        kept_outputs: 0,
        qk_norm: false,
        rotations: 1,
    };
    // Rotary positions pair the numbers of a head, and products pair those of a row.
    for (key, size) in [("head_dim", d.head_dim), ("hidden_size", d.hidden), ("intermediate_size", d.intermediate)] {
        if size == 0 || !size.is_multiple_of(2) {
            return Err(config.error(format!("{key}: expected an even number, got {size}")));
        }
    }
    if !d.heads.is_multiple_of(d.kv_heads) {
        return Err(config.error(format!(
            "num_attention_heads: expected a multiple of num_key_value_heads = {}, got {}",
            d.kv_heads, d.heads
        )));
    }
    Ok(d)
}
