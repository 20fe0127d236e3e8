//! Heads of queries and keys: their rotation, of whole heads and of parts, and their norms.

use super::Judge;
use crate::support::random_weights::random;
use candle_core::{Device as Place, Tensor};
use equipoise::error::Result;
use equipoise::ops::{AttentionShape, FrozenVector, HeadNorms, RopeTable, normalize_heads, normalize_heads_backward};

const EPSILON: f64 = 1e-6;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    let shape = AttentionShape::new;
    // Tokens, heads, how many numbers of each are rotated, and whether queries have factors.
    let rotations = judge.choose(
        [
            (7, shape(2, 1, 24), 24, false),
            (9, shape(1, 1, 64), 64, true),
            (5, shape(3, 2, 64), 16, false),
            (7, shape(3, 1, 66), 26, true),
        ],
        [
            (2047, shape(32, 8, 128), 128, false),
            (1023, shape(9, 3, 64), 64, true),
            (513, shape(24, 8, 128), 96, false),
            (257, shape(6, 2, 80), 20, true),
        ],
    );
    for (tokens, shape, rotated, factors) in rotations {
        for interleaved in [false, true] {
            turned(judge, tokens, shape, rotated, (factors, interleaved))?;
        }
    }
    // Tokens, heads, and whether all queries and all keys have a norm together.
    let norms = judge.choose(
        [
            (5, shape(3, 1, 24), [false, false]),
            (3, shape(9, 2, 128), [false, false]),
            (3, shape(9, 2, 128), [true, true]),
            (3, shape(3, 2, 66), [true, false]),
        ],
        [
            (2047, shape(32, 8, 128), [false, false]),
            (1023, shape(32, 32, 128), [true, true]),
            (513, shape(8, 4, 256), [false, false]),
            (129, shape(15, 5, 66), [true, true]),
        ],
    );
    for (tokens, shape, whole) in norms {
        normalized(judge, tokens, shape, whole)?;
    }
    Ok(())
}

fn turned(
    judge: &mut Judge<'_>,
    tokens: usize,
    shape: AttentionShape,
    rotated: usize,
    (has_factors, interleaved): (bool, bool),
) -> Result<()> {
    let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 3 % 2000).collect();
    let frequencies: Vec<f32> = (0..rotated / 2).map(|i| 5e5f32.powf(-2.0 * i as f32 / rotated as f32)).collect();
    let mut table = RopeTable::new(&positions, &frequencies, 1.1).with_interleaved(interleaved);
    if has_factors {
        table = table.with_query_factors((0..tokens).map(|i| 1.0 + 0.3 * i as f32 / tokens as f32).collect());
    }
    let width = shape.width();
    let x = random(tokens * width, 1, 1.0);
    let (mut there, mut back) = (x.clone(), x.clone());
    table.rotate(&mut there, shape);
    for (token, row) in back.chunks_exact_mut(width).enumerate() {
        table.rotate_back(token, row, shape);
    }
    let (heads, factors) = (shape.heads + shape.kv_heads, if has_factors { ", factors" } else { "" });
    let pairs = if interleaved { ", neighbours" } else { "" };
    let of = format!("{tokens}x{heads}x{rotated} of {}{factors}{pairs}", shape.head_dim);
    judge.each(["rope", "rope backward"], &of, &[there, back], |cuda| {
        let rope = cuda.rope(&table, tokens)?;
        let (there, back) = (cuda.upload(&x, width)?, cuda.upload(&x, width)?);
        cuda.rotate(&there, &rope, shape, false)?;
        cuda.rotate(&back, &rope, shape, true)?;
        Ok([cuda.download(&there)?, cuda.download(&back)?])
    })
}

fn normalized(judge: &mut Judge<'_>, tokens: usize, shape: AttentionShape, whole: [bool; 2]) -> Result<()> {
    let (width, d) = (shape.width(), shape.head_dim);
    let weight = |seed: u64, heads: usize, whole: bool| {
        let count = if whole { heads * d } else { d };
        FrozenVector::new(&Tensor::from_vec(random(count, seed, 1.5), count, &Place::Cpu)?, judge.device)
    };
    let (query, key) = (weight(1, shape.heads, whole[0])?, weight(2, shape.kv_heads, whole[1])?);
    // Heads of differing size: their norms must not be mixed.
    let mut qkv = random(tokens * width, 3, 1.0);
    qkv.iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 + (i % width / d % 5) as f32);
    let d_y = random(tokens * width, 4, 1.0);
    let norms = HeadNorms { query: query.numbers(), key: key.numbers(), epsilon: EPSILON };
    let (mut y, mut d_qkv) = (vec![0f32; qkv.len()], d_y.clone());
    normalize_heads(&qkv, shape, norms, &mut y);
    normalize_heads_backward(&qkv, shape, norms, &mut d_qkv);
    let of = format!("{tokens}x{} of {} heads of {d}, whole {whole:?}", shape.kv_heads, shape.heads);
    judge.each(["head norm", "head norm backward"], &of, &[y, d_qkv], |cuda| {
        let (qkv, d_qkv) = (cuda.upload(&qkv, width)?, cuda.upload(&d_y, width)?);
        let y = cuda.normalize_heads(&qkv, shape, &query, &key, EPSILON)?;
        cuda.normalize_heads_backward(&qkv, shape, &query, &key, EPSILON, &d_qkv)?;
        Ok([cuda.download(&y)?, cuda.download(&d_qkv)?])
    })
}
