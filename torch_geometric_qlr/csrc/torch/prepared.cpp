#include "prepared.h"

#include <algorithm>

#include "../layout.h"

namespace qlr {

const void* Prepared::as(const View& x, int32_t dtype) {
  if (!x) return nullptr;
  if (x.dtype == dtype) {
    bool contiguous = false;
    torch_did(torch().aoti_torch_is_contiguous(x.handle, &contiguous));
    if (contiguous) return address(x.handle);
  }
  tensors_.push_back(empty(x.dim, x.sizes, dtype));
  torch_did(torch().aoti_torch_copy_(tensors_.back().get(), x.handle, 0));
  return address(tensors_.back().get());
}

// Both of one shape: -1 for one number, 0 along the rows, 1 along the columns.
Prepared::Affine Prepared::affine(const View& scale, const View& zero, int64_t rows) {
  const View& wide = scale.numel == 1 ? zero : scale;
  Affine params{QLR_PER_TENSOR, floats(scale), floats(zero)};
  if (wide.numel == 1) return params;
  params.axis = wide.is_matrix(rows, 1) ? QLR_PER_ROW : QLR_PER_COLUMN;
  const auto widened = [&](const View& param, const float* at) {
    if (param.numel == wide.numel) return at;
    float* const all = room<float>(wide.numel);
    std::fill(all, all + wide.numel, *at);
    return static_cast<const float*>(all);
  };
  params.scale = widened(scale, params.scale);
  params.zero = widened(zero, params.zero);
  return params;
}

QlrPacked Prepared::packed(const PackedArgument& packed) {
  const Affine params = affine(packed.scale, packed.zero, packed.rows());
  return {bytes(packed.data), packed.rows(), packed.cols, static_cast<int32_t>(packed.bits),
          params.axis,        params.scale,  params.zero};
}

QlrQuantizer Prepared::quantizer(const QuantizerArgument& quantizer, int64_t rows) {
  const Affine params = affine(quantizer.scale, quantizer.zero, rows);
  const float* const skew = floats(quantizer.skew);
  return {params.scale,       params.zero,
          params.axis,        static_cast<int32_t>(quantizer.bits),
          quantizer.truncate, skew == nullptr ? 0.f : *skew};
}

QlrRowQuantizer Prepared::row_quantizer(const QuantizerArgument& quantizer, bool aligned) {
  const float* const skew = floats(quantizer.skew);
  return {*floats(quantizer.scale), static_cast<int32_t>(quantizer.bits), quantizer.truncate,
          aligned, skew == nullptr ? 0.f : *skew};
}

std::vector<QlrQuantizer> Prepared::steps(const QuantizerArgument& steps) {
  const float* const scale = floats(steps.scale);
  const float* const zero = floats(steps.zero);
  const float* const skew = floats(steps.skew);
  std::vector<QlrQuantizer> each;
  for (int64_t k = 0; k < steps.scale.numel; ++k)
    each.push_back({scale + k, zero + k, QLR_PER_TENSOR, static_cast<int32_t>(steps.bits),
                    steps.truncate, skew == nullptr ? 0.f : skew[k]});
  return each;
}

const int32_t* Prepared::columns(const View& col, int64_t sources) {
  if (col.dtype == torch().int32) return static_cast<const int32_t*>(as(col, torch().int32));
  const int64_t* const wide = static_cast<const int64_t*>(as(col, torch().int64));
  int32_t* const narrow = room<int32_t>(col.numel);
  for (int64_t e = 0; e < col.numel; ++e) {
    // An index that wraps into range would pass the kernel's own check.
    if (wide[e] < 0 || wide[e] >= sources) throw Refusal{QLR_BAD_INDEX, ""};
    narrow[e] = static_cast<int32_t>(wide[e]);
  }
  return narrow;
}

QlrGraph Prepared::graph(const GraphArgument& graph, int64_t sources) {
  if (sources >= int64_t{1} << 31) throw Refusal{QLR_UNSUPPORTED, "2^31 source rows or more"};
  return {static_cast<const int64_t*>(as(graph.rowptr, torch().int64)),
          columns(graph.col, sources),
          graph.rows(),
          graph.edges(),
          floats(graph.edge_weight),
          nullptr,
          floats(graph.source_weight),
          0,
          nullptr};
}

QlrGraph Prepared::coded_graph(const GraphArgument& graph, int64_t sources) {
  if (graph.edge_weight.dtype != torch().int8) return this->graph(graph, sources);
  GraphArgument plain = graph;
  plain.edge_weight = View();
  QlrGraph coded = this->graph(plain, sources);
  coded.edge_codes = static_cast<const int8_t*>(as(graph.edge_weight, torch().int8));
  return coded;
}

QlrEpilogue Prepared::epilogue(const EpilogueArgument& epilogue) {
  return {floats(epilogue.row_scale),
          floats(epilogue.bias),
          floats(epilogue.addend),
          static_cast<float>(epilogue.addend_scale),
          epilogue.mean,
          epilogue.relu,
          nullptr,
          nullptr,
          nullptr};
}

Owned Prepared::output(const EpilogueArgument& epilogue, int64_t rows, int64_t cols, Output& to) {
  to.epilogue = this->epilogue(epilogue);
  if (!epilogue.output.scale) {
    Owned out = empty_matrix(rows, cols, torch().float32);
    to.epilogue.out = static_cast<float*>(address(out.get()));
    return out;
  }
  to.quantizer = quantizer(epilogue.output, rows);
  // The reference is what is meant to answer.
  if (to.quantizer.axis == QLR_PER_ROW) throw Refusal{QLR_UNSUPPORTED, ""};
  Owned out = empty_matrix(rows, row_stride(cols, epilogue.output.bits), torch().uint8);
  to.epilogue.packed = static_cast<uint8_t*>(address(out.get()));
  to.epilogue.quantizer = &to.quantizer;
  return out;
}

int64_t row_stride(int64_t cols, int64_t bits) {
  return Layout(cols, storage_bits(static_cast<int>(bits))).stride;
}

}  // namespace qlr
