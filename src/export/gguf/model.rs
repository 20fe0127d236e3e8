//! A merged model as one GGUF file.

use super::{GgufWriter, ModelFacts, Placement, ROPE_FREQS, file_size, metadata, placement, rope_freqs};
use crate::error::{Error, Result};
use crate::export::{GgufType, Job, MergedWeights, Output, type_name};
use crate::nn::fallback_of;
use crate::weight_type::WeightType;
use crate::weights::TensorInfo;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// A tensor on its way from the base to the file.
struct Move {
    source: TensorInfo,
    info: TensorInfo,
    place: Placement,
}

/// Writes `<name>-<type>.gguf`; gives the file's name.
pub(in crate::export) fn export_model(job: &Job<'_>, out: &mut Output<'_>) -> Result<String> {
    let weights = job.merged()?;
    let mut fallbacks = BTreeMap::new();
    let moves = moves(job, &weights, &mut fallbacks)?;
    for ([from, to], count) in fallbacks {
        out.note(format!("{count} matrices of a width that {from} cannot hold are written as {to}"));
    }
    let factors = factors(job, &weights)?;
    let most = main_type(&moves);
    let label = job.options.quantize.map_or(most, GgufType::weight_type);
    let facts = ModelFacts {
        name: job.name,
        dtype: most,
        base_model: Some(job.base_name),
        license: None,
        chat_template: job.chat_template,
    };
    let metadata = metadata(job.base, &facts)?;
    let mut infos: Vec<TensorInfo> = moves.iter().map(|one| one.info.clone()).collect();
    if let Some(factors) = &factors {
        let info = TensorInfo { name: ROPE_FREQS.into(), shape: vec![factors.len()], dtype: WeightType::F32 };
        infos.push(info);
    }
    let name = format!("{}-{}.gguf", job.name, type_name(label));
    let path = Path::new(&name);
    out.expect(file_size(path, &metadata, &infos)?)?;
    for info in &infos {
        out.count(info.dtype);
    }
    let failure = RefCell::new(None);
    out.file(&name, |write| {
        let sink = Sink { write, failure: &failure };
        let mut writer = GgufWriter::new(sink, path, &metadata, infos)?;
        write_tensors(&mut writer, &weights, &moves, factors.as_deref())?;
        writer.finish().map(drop)
    })
    // The writer knows only that it could not write; why, the sink does.
    .map_err(|error| failure.take().unwrap_or(error))?;
    Ok(name)
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

fn write_tensors(
    writer: &mut GgufWriter<Sink<'_, '_>>,
    weights: &MergedWeights<'_>,
    moves: &[Move],
    factors: Option<&[f32]>,
) -> Result<()> {
    for Move { source, info, place } in moves {
        writer.begin(&info.name)?;
        let numbers = source.shape.first().copied().unwrap_or(1);
        let height = place.permuted_heads.map_or(1, |heads| (numbers / heads.max(1)).max(1));
        let arrange = |bytes: Vec<u8>, rows: usize| match (place.permuted_heads, source.shape.len()) {
            (None, _) => Ok(bytes),
            (Some(_), 1) => place.order(bytes, numbers),
            (Some(_), _) => Placement { permuted_heads: Some(rows / height), ..place.clone() }.order(bytes, rows),
        };
        weights.stream(source, info.dtype, height, &arrange, &mut |bytes| writer.write(bytes))?;
    }
    if let Some(factors) = factors {
        writer.begin(ROPE_FREQS)?;
        writer.write(&factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// All tensors of the base with their places and types in the file. `fallbacks` counts types that do not fit a width.
fn moves(
    job: &Job<'_>,
    weights: &MergedWeights<'_>,
    fallbacks: &mut BTreeMap<[String; 2], usize>,
) -> Result<Vec<Move>> {
    let mut moves = Vec::new();
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let both = job.base.tensor(embedding).is_some() && job.base.tensor(head).is_some();
    let tied = job.base.config().get("tie_word_embeddings").and_then(serde_json::Value::as_bool).unwrap_or(!both);
    for source in weights.tensors() {
        // Tied weights are stored once in GGUF, as the embeddings.
        if tied && both && source.name == head {
            continue;
        }
        let name = if tied && source.name == head { embedding } else { &source.name };
        let place = placement(job.base, name)?;
        let wanted = wanted(job, &source, weights.is_changed(&source.name));
        let mut dtype = wanted;
        let width = source.shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(dtype.block_size()) {
            dtype = fallback_of(dtype);
        }
        if !width.is_multiple_of(dtype.block_size()) {
            dtype = WeightType::F16;
        }
        if dtype != wanted {
            *fallbacks.entry([type_name(wanted), type_name(dtype)]).or_default() += 1;
        }
        let info = TensorInfo { name: place.name.clone(), shape: source.shape.clone(), dtype };
        moves.push(Move { source, info, place });
    }
    Ok(moves)
}

/// The type of a tensor in the file. Vectors are f32, as llama.cpp wants them; embeddings and head have 8 bits at least, as
/// in training.
fn wanted(job: &Job<'_>, tensor: &TensorInfo, changed: bool) -> WeightType {
    if tensor.shape.len() < 2 {
        return WeightType::F32;
    }
    let chosen = match job.options.quantize {
        Some(GgufType::Float(float)) => return float.weight_type(),
        Some(GgufType::Blocks(kind)) => kind.weight_type().unwrap_or(WeightType::Q8_0),
        // Blocks of few bits round small updates away: a number that lies on the grid of its block stays where it is.
        None if job.base.is_gguf() && (!changed || tensor.dtype.block_size() == 1) => return tensor.dtype,
        None => WeightType::Q8_0,
    };
    let precise = ["model.embed_tokens.weight", "lm_head.weight"].contains(&tensor.name.as_str());
    if precise { WeightType::Q8_0 } else { chosen }
}

/// The type of most numbers.
fn main_type(moves: &[Move]) -> WeightType {
    let mut counts: Vec<(WeightType, usize)> = Vec::new();
    for Move { info, .. } in moves {
        let numbers: usize = info.shape.iter().product();
        match counts.iter_mut().find(|(dtype, _)| *dtype == info.dtype) {
            Some((_, count)) => *count += numbers,
            None => counts.push((info.dtype, numbers)),
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(WeightType::F32, |(dtype, _)| dtype)
}

/// Llama 3's rotary factors, which a folder has in its configuration and GGUF in a tensor.
fn factors(job: &Job<'_>, weights: &MergedWeights<'_>) -> Result<Option<Vec<f32>>> {
    if job.base.is_gguf() {
        return Ok(None);
    }
    rope_freqs(job.base.config(), weights.dimensions().head_dim)
}
