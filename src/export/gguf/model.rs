//! A merged model as one GGUF file.

use super::hyperparameters::class_defaults;
use super::remarks::remarks;
use super::tensors::{architecture, placements_as};
use super::{GgufWriter, ModelFacts, Placement, file_size, is_left_out, metadata, rope_tensors};
use crate::error::{Error, Result};
use crate::export::{GgufType, Job, MergedWeights, Output, type_name};
use crate::fs;
use crate::nn::fallback_of;
use crate::weight_type::WeightType;
use crate::weights::{Base, TensorInfo};
use candle_core::quantized::gguf_file::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A tensor on its way from the base to the file.
struct Move {
    source: TensorInfo,
    info: TensorInfo,
    place: Placement,
}

/// All that goes into the file.
struct Plan<'a> {
    weights: MergedWeights<'a>,
    moves: Vec<Move>,
    /// What Hugging Face has in its configuration, and GGUF in tensors of f32.
    rope: Vec<(&'static str, Vec<f32>)>,
}

/// Writes `<name>-<type>.gguf`; gives the file's name.
pub(in crate::export) fn export_model(job: &Job<'_>, out: &mut Output<'_>) -> Result<String> {
    let mut fallbacks = BTreeMap::new();
    let plan = Plan::new(job.merged()?, job.options.quantize, &mut fallbacks)?;
    for ([from, to], count) in fallbacks {
        out.note(format!("{count} matrices of a width that {from} cannot hold are written as {to}"));
    }
    for remark in remarks(job.base) {
        out.note(remark);
    }
    let most = plan.main_type();
    let label = job.options.quantize.map_or(most, GgufType::weight_type);
    let facts = ModelFacts {
        name: job.name,
        dtype: most,
        base_model: Some(job.base_name),
        license: None,
        chat_template: job.chat_template,
    };
    let metadata = metadata(job.base, &facts)?;
    let infos = plan.infos();
    let name = format!("{}-{}.gguf", job.name, type_name(label));
    let path = Path::new(&name);
    out.expect(file_size(path, &metadata, &infos)?)?;
    for info in &infos {
        out.count(info.dtype);
    }
    let failure = RefCell::new(None);
    out.file(&name, |write| {
        let sink = Sink { write, failure: &failure };
        plan.write(GgufWriter::new(sink, path, &metadata, infos)?)
    })
    // The writer knows only that it could not write; why, the sink does.
    .map_err(|error| failure.take().unwrap_or(error))?;
    Ok(name)
}

/// Writes a base by itself, with no adapter, as a GGUF file of these metadata. `kind` is the type of its matrices.
///
/// # Errors
/// When the base's architecture is not written as GGUF, a tensor has no place, or the disk refuses.
pub fn write_base(path: &Path, base: &Base, metadata: &[(String, Value)], kind: GgufType) -> Result<()> {
    let plan = Plan::new(MergedWeights::unchanged(base), Some(kind), &mut BTreeMap::new())?;
    fs::write_atomic_with(path, |temporary| {
        let out = BufWriter::new(File::create(temporary).map_err(Error::io("create", path))?);
        plan.write(GgufWriter::new(out, path, metadata, plan.infos())?)
    })
}

/// Hands bytes on, and keeps what is answered.
struct Sink<'a, 'b> {
    write: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    failure: &'b RefCell<Option<Error>>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.write)(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.failure.replace(Some(error));
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> Plan<'a> {
    /// `fallbacks` counts types that do not fit a width.
    fn new(
        mut weights: MergedWeights<'a>,
        quantize: Option<GgufType>,
        fallbacks: &mut BTreeMap<[String; 2], usize>,
    ) -> Result<Self> {
        let moves = moves(&weights, quantize, fallbacks)?;
        if moves.iter().any(|one| one.place.adds_one) {
            weights.shift_norms(1.0);
        }
        let base = weights.base();
        let rope = if base.is_gguf() {
            Vec::new()
        } else {
            rope_tensors(base.config(), class_defaults(architecture(base)?)?)?
        };
        Ok(Self { weights, moves, rope })
    }

    /// The tensors of the file, in their order.
    fn infos(&self) -> Vec<TensorInfo> {
        let rope = self.rope.iter().map(|(name, factors)| TensorInfo {
            name: (*name).into(),
            shape: vec![factors.len()],
            dtype: WeightType::F32,
        });
        self.moves.iter().map(|one| one.info.clone()).chain(rope).collect()
    }

    fn write<W: Write>(&self, mut writer: GgufWriter<W>) -> Result<()> {
        for Move { source, info, place } in &self.moves {
            writer.begin(&info.name)?;
            let is_vector = source.shape.len() < 2;
            let height = place.permuted_heads.map_or(1, |heads| (place.rows.len() / heads.max(1)).max(1));
            let arrange = |bytes: Vec<u8>, rows: usize| match place.permuted_heads {
                None => Ok(bytes),
                Some(_) if is_vector => place.order(bytes, place.rows.len()),
                Some(_) => Placement { permuted_heads: Some(rows / height), ..place.clone() }.order(bytes, rows),
            };
            // Of a vector, all its numbers are one row.
            let rows = if is_vector { 0..1 } else { place.rows.clone() };
            self.weights.stream(source, rows, info.dtype, height, &arrange, &mut |bytes| writer.write(bytes))?;
        }
        for (name, factors) in &self.rope {
            writer.begin(name)?;
            writer.write(&factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        writer.finish().map(drop)
    }

    /// The type of most numbers.
    fn main_type(&self) -> WeightType {
        let mut counts: Vec<(WeightType, usize)> = Vec::new();
        for Move { info, .. } in &self.moves {
            let numbers: usize = info.shape.iter().product();
            match counts.iter_mut().find(|(dtype, _)| *dtype == info.dtype) {
                Some((_, count)) => *count += numbers,
                None => counts.push((info.dtype, numbers)),
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(WeightType::F32, |(dtype, _)| dtype)
    }
}

/// All tensors of the base with their places and types in the file. `fallbacks` counts types that do not fit a width.
fn moves(
    weights: &MergedWeights<'_>,
    quantize: Option<GgufType>,
    fallbacks: &mut BTreeMap<[String; 2], usize>,
) -> Result<Vec<Move>> {
    let base = weights.base();
    let mut moves = Vec::new();
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let both = base.tensor(embedding).is_some() && base.tensor(head).is_some();
    let tied = base.config().get("tie_word_embeddings").and_then(serde_json::Value::as_bool).unwrap_or(!both);
    for source in weights.tensors() {
        // Tied weights are stored once in GGUF, as the embeddings.
        if (tied && both && source.name == head) || is_left_out(base, &source.name) {
            continue;
        }
        let name = if tied && source.name == head { embedding } else { &source.name };
        let wanted = wanted(weights, &source, quantize);
        let mut dtype = wanted;
        let width = source.shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(dtype.block_size()) {
            dtype = fallback_of(dtype);
        }
        if !width.is_multiple_of(dtype.block_size()) {
            dtype = WeightType::F16;
        }
        for place in placements_as(base, name, &source.shape)? {
            if dtype != wanted {
                *fallbacks.entry([type_name(wanted), type_name(dtype)]).or_default() += 1;
            }
            let mut shape = source.shape.clone();
            if let Some(height) = shape.first_mut() {
                *height = place.rows.len();
            }
            let info = TensorInfo { name: place.name.clone(), shape, dtype };
            moves.push(Move { source: source.clone(), info, place });
        }
    }
    Ok(moves)
}

/// The type of a tensor in the file. Vectors are f32, as llama.cpp wants them; embeddings and head have 8 bits at least, as
/// in training.
fn wanted(weights: &MergedWeights<'_>, tensor: &TensorInfo, quantize: Option<GgufType>) -> WeightType {
    if tensor.shape.len() < 2 {
        return WeightType::F32;
    }
    let changed = weights.is_changed(&tensor.name);
    let chosen = match quantize {
        Some(GgufType::Float(float)) => return float.weight_type(),
        Some(GgufType::Blocks(kind)) => kind.weight_type().unwrap_or(WeightType::Q8_0),
        // Blocks of few bits round small updates away: a number that lies on the grid of its block stays where it is.
        None if weights.base().is_gguf() && (!changed || tensor.dtype.block_size() == 1) => return tensor.dtype,
        None => WeightType::Q8_0,
    };
    let precise = ["model.embed_tokens.weight", "lm_head.weight"].contains(&tensor.name.as_str());
    if precise { WeightType::Q8_0 } else { chosen }
}
