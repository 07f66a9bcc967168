// Brings a checkpoint's tensors into the form the decoder stack computes with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/weights.h"
#include "nn/transformer.h"

namespace distil_xlstm::teacher {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// Every tensor a model of this configuration has, under Hugging Face names; a tied head is not listed.
std::vector<TensorSpec> tensor_specs(const nn::TransformerConfig& config);

// What the stored tensors make of a configuration, as in transformers: a tied head that is stored with values of its own is used, with a
// warning; biases of o that a Llama should have and has nowhere are zero. Throws DataError for a stored head of another shape.
nn::TransformerConfig as_stored(nn::TransformerConfig config, const io::WeightSource& source);

// Sum of their elements.
int64_t num_parameters(const nn::TransformerConfig& config);

// Where device and dtype are those of the file, tensors are views of the mapped file, which stays open as long as they live; all others
// are converted in pieces of a few MiB straight into their place. q, k, v and gate, up are always read into one matrix each.
// Throws DataError that lists missing and unexpected tensors and wrong shapes.
nn::TransformerWeights load_weights(const nn::TransformerConfig& config, const std::shared_ptr<io::WeightSource>& source, at::Device device,
                                    at::ScalarType dtype);

// Normal values of this deviation (norms: 1), rounded to bfloat16 so that every dtype holds the same model; drawn on the device `drawn_on`
// from LibTorch's generator there.
nn::TransformerWeights random_weights(const nn::TransformerConfig& config, at::Device device, at::ScalarType dtype, at::Device drawn_on,
                                      double deviation);

}  // namespace distil_xlstm::teacher
