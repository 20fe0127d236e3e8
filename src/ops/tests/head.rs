//! The head and the loss.

use super::*;
use crate::ops::linear_cross_entropy::chunk_tokens;
use crate::ops::{HeadRequest, Pool, composed, linear_cross_entropy};

const GRADIENT: HeadRequest = HeadRequest { gradient: true, top_k: None };

struct Head {
    weight: FrozenWeight,
    targets: Vec<u32>,
    softcap: Option<f32>,
}

impl Head {
    fn new(n: usize, d: usize, vocabulary: usize, kind: GgmlDType) -> Self {
        let mut targets: Vec<u32> = (0..n).map(|i| (i * 7919 % vocabulary) as u32).collect();
        // The ends of the vocabulary, and one target twice.
        targets.splice(..4, [0, vocabulary as u32 - 1, 7, 7]);
        Self { weight: weight(vocabulary, d, kind, 1), targets, softcap: None }
    }

    fn pool(&self) -> Pool {
        let (d, vocabulary) = (self.weight.columns(), self.weight.rows().next_multiple_of(16));
        soiled_pool(&[512 * vocabulary, self.targets.len() * d, 512 * d, 32 * 1024])
    }
}

impl Operation for Head {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let hidden = rounded::<E>(&inputs[0]);
        let pass = linear_cross_entropy(
            &hidden,
            &self.weight,
            &self.targets,
            self.softcap,
            HeadRequest::default(),
            (&self.pool(), 0),
        )
        .unwrap();
        assert!(pass.gradient.is_none());
        pass.log_probabilities.iter().map(|&x| -x as f32).collect()
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let hidden = rounded::<E>(&inputs[0]);
        let pass =
            linear_cross_entropy(&hidden, &self.weight, &self.targets, self.softcap, GRADIENT, (&self.pool(), 0))
                .unwrap();
        let rows = pass.gradient.as_deref().unwrap().chunks_exact(self.weight.columns());
        vec![rows.zip(dy).flat_map(|(row, dy)| row.iter().map(move |x| x * dy)).collect()]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let hidden = inputs[0].reshape(((), self.weight.columns())).unwrap();
        let logits = composed::softcap(composed::linear(&hidden, &self.weight).unwrap(), self.softcap).unwrap();
        let targets = Tensor::new(self.targets.as_slice(), &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        candle_nn::ops::log_softmax(&logits, 1).unwrap().gather(&targets, 1).unwrap().neg().unwrap()
    }
}

#[test]
fn the_head_is_right_forward_and_backward() {
    for (n, d, vocabulary, kind) in [
        (5, 32, 50, GgmlDType::F32),
        (13, 64, 97, GgmlDType::Q8_0),
        // Two panels of the vocabulary forward; more tokens than a task takes.
        (70, 64, 5000, GgmlDType::Q4_0),
        // Several chunks of tokens.
        (chunk_tokens::<f32>(120) + 9, 32, 120, GgmlDType::F32),
    ] {
        let head = Head::new(n, d, vocabulary, kind);
        check(&format!("head {n}×{d}×{vocabulary}"), &head, &[random(n * d, 2)]);
    }
}

#[test]
fn the_head_agrees_with_its_composition_in_what_it_counts() {
    let head = Head::new(80, 64, 5000, GgmlDType::F32);
    let hidden = random(80 * 64, 2);
    let tensor = Tensor::from_slice(&hidden, (80, 64), &Device::Cpu).unwrap();
    // Some targets are the likeliest token, the others hardly.
    let logits = composed::linear(&tensor, &head.weight).unwrap();
    let mut targets = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
    targets.iter_mut().step_by(3).for_each(|target| *target = (*target + 1) % 5000);
    let pass = linear_cross_entropy(&hidden, &head.weight, &targets, None, GRADIENT, (&head.pool(), 0)).unwrap();
    let composed::HeadPass { log_probabilities, top1, gradient, .. } =
        composed::head(&tensor, &head.weight, &targets, None, None).unwrap();
    assert_eq!(pass.top1, top1);
    assert_eq!(top1.iter().filter(|&&top| top).count(), 80 - 27);
    for (a, b) in pass.log_probabilities.iter().zip(&log_probabilities) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }
    let expected = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    close("the head's gradient", &pass.gradient.unwrap(), &expected, COMPOSED);
}

#[test]
fn a_capped_head_is_right_forward_and_backward() {
    // Logits spread by √d / 3.
    for (n, d, vocabulary, kind, cap) in [
        (5, 32, 50, GgmlDType::F32, 30.0),
        (13, 64, 97, GgmlDType::Q8_0, 12.0),
        (70, 64, 5000, GgmlDType::Q4_0, 15.0),
        (chunk_tokens::<f32>(120) + 9, 32, 120, GgmlDType::F32, 10.0),
    ] {
        let head = Head { softcap: Some(cap), ..Head::new(n, d, vocabulary, kind) };
        check(&format!("head {n}×{d}×{vocabulary} under {cap}"), &head, &[random(n * d, 2)]);
    }
    // Many logits at their ends: too bent for differences.
    for cap in [3.0, 1.0, 0.3] {
        let head = Head { softcap: Some(cap), ..Head::new(70, 64, 5000, GgmlDType::Q8_0) };
        check_bent(&format!("head under {cap}"), &head, &[random(70 * 64, 2)]);
    }
}

#[test]
fn a_capped_head_agrees_with_its_composition_in_what_it_counts() {
    let head = Head { softcap: Some(3.0), ..Head::new(80, 64, 5000, GgmlDType::F32) };
    let hidden = random(80 * 64, 2);
    let tensor = Tensor::from_slice(&hidden, (80, 64), &Device::Cpu).unwrap();
    let targets = composed::linear(&tensor, &head.weight).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
    let pass =
        linear_cross_entropy(&hidden, &head.weight, &targets, head.softcap, GRADIENT, (&head.pool(), 0)).unwrap();
    let composed::HeadPass { log_probabilities, top1, gradient, .. } =
        composed::head(&tensor, &head.weight, &targets, head.softcap, None).unwrap();
    assert_eq!(pass.top1, top1);
    assert!(top1.iter().all(|&top| top), "a cap keeps the order");
    for (a, b) in pass.log_probabilities.iter().zip(&log_probabilities) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }
    let expected = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    close("the capped head's gradient", &pass.gradient.unwrap(), &expected, COMPOSED);
}

/// A logit far above the cap has no slope, its token a log-probability all the same.
#[test]
fn logits_far_above_a_cap_are_finite() {
    let head = Head { softcap: Some(30.0), ..Head::new(9, 64, 5000, GgmlDType::F32) };
    let hidden: Vec<f32> = random(9 * 64, 2).into_iter().map(|x| x * 1e4).collect();
    let tensor = Tensor::from_slice(&hidden, 9 * 64, &Device::Cpu).unwrap();
    let expected = head.composed(std::slice::from_ref(&tensor)).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    close("the loss of saturated logits", &head.forward::<f32>(std::slice::from_ref(&hidden)), &expected, COMPOSED);
    assert!(head.backward::<f32>(std::slice::from_ref(&hidden), &[1.0; 9])[0].iter().all(|x| x.is_finite()));
    assert!(head.backward::<bf16>(&[hidden], &[1.0; 9])[0].iter().all(|x| x.is_finite()));
}

#[test]
fn a_tie_ranks_nothing_first() {
    // Row 1 of the head is row 4 again, and row 4,700 lies in another panel.
    let (d, vocabulary) = (64, 5000);
    let mut numbers = random(vocabulary * d, 1);
    let again: Vec<f32> = numbers[4 * d..5 * d].iter().map(|x| x * 40.0).collect();
    for row in [1, 4, 4700] {
        numbers[row * d..][..d].copy_from_slice(&again);
    }
    let hidden: Vec<f32> = again.iter().chain(&vec![0.0; d]).chain(&numbers[77 * d..78 * d]).copied().collect();
    let tensor = Tensor::from_vec(numbers, (vocabulary, d), &Device::Cpu).unwrap();
    let weight = FrozenWeight::quantized(&QTensor::quantize(&tensor, GgmlDType::F32).unwrap()).unwrap();
    for (targets, expected) in [([1, 0, 77], [false, false]), ([4700, 4999, 77], [false, false])] {
        let pass =
            linear_cross_entropy(&hidden, &weight, &targets, None, HeadRequest::default(), (&Pool::default(), 0))
                .unwrap();
        assert_eq!(pass.top1[..2], expected, "equal rows, and logits that are all 0");
        let rows = Tensor::from_slice(&hidden, (3, d), &Device::Cpu).unwrap();
        assert_eq!(composed::head(&rows, &weight, &targets, None, None).unwrap().top1, pass.top1);
    }
}

#[test]
fn logits_of_any_size_keep_the_loss_finite_and_right() {
    // The second panel's logits lie far above the first's, or far below.
    let (n, d, vocabulary) = (9, 64, 5000);
    for (first, second) in [(0.1f32, 20.0f32), (20.0, 0.1), (30.0, 30.0)] {
        let numbers = random(vocabulary * d, 1);
        let numbers: Vec<f32> =
            numbers.iter().enumerate().map(|(i, x)| x * if i < 4500 * d { first } else { second }).collect();
        let tensor = Tensor::from_vec(numbers, (vocabulary, d), &Device::Cpu).unwrap();
        let weight = FrozenWeight::quantized(&QTensor::quantize(&tensor, GgmlDType::F32).unwrap()).unwrap();
        let head = Head { weight, targets: vec![0, 4999, 7, 4600, 4499, 4500, 1, 2, 3], softcap: None };
        let hidden = random(n * d, 2);
        let tensor = Tensor::from_slice(&hidden, n * d, &Device::Cpu).unwrap();
        let expected = head.composed(std::slice::from_ref(&tensor)).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        close("the loss of large logits", &head.forward::<f32>(std::slice::from_ref(&hidden)), &expected, COMPOSED);
        let rows = tensor.reshape((n, d)).unwrap();
        let gradient = composed::head(&rows, &head.weight, &head.targets, None, None).unwrap().gradient;
        let expected = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = head.backward::<f32>(std::slice::from_ref(&hidden), &[1.0; 9]);
        close("the gradient of large logits", &got[0], &expected, 1e-4);
        let rounded = head.backward::<bf16>(&[hidden], &[1.0; 9]);
        assert!(rounded[0].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn a_target_outside_of_the_vocabulary_is_an_error() {
    let head = Head::new(5, 32, 50, GgmlDType::F32);
    let mut targets = head.targets.clone();
    targets[3] = 50;
    let error = linear_cross_entropy(&random(5 * 32, 2), &head.weight, &targets, None, GRADIENT, (&Pool::default(), 0))
        .unwrap_err();
    assert!(error.to_string().contains("50"), "{error}");
    assert!(
        linear_cross_entropy(&random(4 * 32, 2), &head.weight, &targets, None, GRADIENT, (&Pool::default(), 0))
            .is_err()
    );
}

/// In one panel of the vocabulary and in several, in one chunk of tokens and in several, with and without a cap, for more logits than
/// there are.
#[test]
fn the_entropy_of_the_largest_logits_is_that_of_the_composition() {
    for (n, vocabulary, k, softcap) in
        [(9, 97, 20, None), (70, 5000, 20, None), (30, 5000, 5, Some(2.0)), (4, 13, 20, None), (1100, 61, 3, None)]
    {
        let head = Head { softcap, ..Head::new(n, 64, vocabulary, GgmlDType::F32) };
        let hidden: Vec<f32> = random(n * 64, 2).iter().map(|x| 3.0 * x).collect();
        let tensor = Tensor::from_slice(&hidden, (n, 64), &Device::Cpu).unwrap();
        let expected = composed::head(&tensor, &head.weight, &head.targets, softcap, Some(k)).unwrap().entropies;
        let request = HeadRequest { gradient: false, top_k: Some(k) };
        let pass =
            linear_cross_entropy(&hidden, &head.weight, &head.targets, softcap, request, (&head.pool(), 0)).unwrap();
        assert_eq!(pass.entropies.len(), n);
        for (got, expected) in pass.entropies.iter().zip(&expected) {
            assert!((got - expected).abs() < 2e-5, "{n}×{vocabulary}, {k}: {got} is not {expected}");
        }
    }
}
