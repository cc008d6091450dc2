// Values to codes and back.
#include "ops.h"

namespace qlr {
namespace {

uint64_t one(int32_t dtype) { return uint64_t{1} << dtype; }

void quantize_pack(Call& call) {
  const View x = call.in.tensor();
  const QuantizerArgument how = read_quantizer(call.in);
  check_matrix(x, torch().floats);
  const int64_t rows = x.sizes[0], cols = x.sizes[1];
  check_columns(cols);
  check_quantizer(how, rows, cols);

  const QlrQuantizer quantizer = call.prepared.quantizer(how, rows);
  call.results[0] = empty_matrix(rows, row_stride(cols, how.bits), torch().uint8);
  uint8_t* const out = static_cast<uint8_t*>(address(call.results[0].get()));
  answered(qlr_quantize_pack(call.prepared.floats(x), rows, cols, &quantizer, out, call.threads,
                             call.isa));
}

void quantize_rows(Call& call) {
  const View x = call.in.tensor();
  QuantizerArgument how;
  how.scale = call.in.tensor();
  how.bits = call.in.integer();
  how.truncate = call.in.flag();
  const bool aligned = call.in.flag();
  how.skew = call.in.optional();
  check_matrix(x, torch().floats);
  const int64_t rows = x.sizes[0], cols = x.sizes[1];
  check_columns(cols);
  check_row_quantizer(how);

  const QlrRowQuantizer quantizer = call.prepared.row_quantizer(how, aligned);
  call.results[0] = empty_matrix(rows, row_stride(cols, how.bits), torch().uint8);
  call.results[1] = empty_matrix(rows, 1, torch().float32);
  call.results[2] = empty_matrix(rows, 1, torch().float32);
  uint8_t* const out = static_cast<uint8_t*>(address(call.results[0].get()));
  float* const scale = static_cast<float*>(address(call.results[1].get()));
  float* const zero = static_cast<float*>(address(call.results[2].get()));
  answered(qlr_quantize_rows(call.prepared.floats(x), rows, cols, &quantizer, out, scale, zero,
                             call.threads, call.isa));
}

void pack(Call& call) {
  const View codes = call.in.tensor();
  const int64_t bits = call.in.integer();
  check_matrix(codes, one(torch().uint8));
  const int64_t rows = codes.sizes[0], cols = codes.sizes[1];
  check_columns(cols);
  check_storage_width(bits);

  call.results[0] = empty_matrix(rows, row_stride(cols, bits), torch().uint8);
  uint8_t* const out = static_cast<uint8_t*>(address(call.results[0].get()));
  answered(qlr_pack(call.prepared.bytes(codes), rows, cols, static_cast<int32_t>(bits), out,
                    call.threads, call.isa));
}

void unpack(Call& call) {
  PackedArgument packed;
  packed.data = call.in.tensor();
  packed.cols = call.in.integer();
  packed.bits = call.in.integer();
  check_packed(packed);

  const QlrPacked source{call.prepared.bytes(packed.data),
                         packed.rows(),
                         packed.cols,
                         static_cast<int32_t>(packed.bits),
                         QLR_PER_TENSOR,
                         nullptr,
                         nullptr};
  call.results[0] = empty_matrix(packed.rows(), packed.cols, torch().uint8);
  uint8_t* const out = static_cast<uint8_t*>(address(call.results[0].get()));
  answered(qlr_unpack(&source, out, call.threads, call.isa));
}

void dequantize_packed(Call& call) {
  const PackedArgument packed = read_packed(call.in);
  check_packed(packed);

  const QlrPacked source = call.prepared.packed(packed);
  call.results[0] = empty_matrix(packed.rows(), packed.cols, torch().float32);
  float* const out = static_cast<float*>(address(call.results[0].get()));
  answered(qlr_dequantize(&source, out, call.threads, call.isa));
}

void index_select(Call& call) {
  const View packed = call.in.tensor(), index = call.in.tensor();
  check_matrix(packed, one(torch().uint8));
  require(index.is_of(torch().indices) && index.dim == 1);

  const int64_t rows = packed.sizes[0], stride = packed.sizes[1];
  call.results[0] = empty_matrix(index.numel, stride, torch().uint8);
  uint8_t* const out = static_cast<uint8_t*>(address(call.results[0].get()));
  const auto* const at = static_cast<const int64_t*>(call.prepared.as(index, torch().int64));
  answered(qlr_index_select(call.prepared.bytes(packed), rows, stride, at, index.numel, out,
                            call.threads));
}

const Kernel<quantize_pack> kQuantizePack("quantize_pack", Gradient::kRefused);
const Kernel<quantize_rows> kQuantizeRows("quantize_rows", Gradient::kRefused);
const Kernel<pack> kPack("pack", Gradient::kNone);
const Kernel<unpack> kUnpack("unpack", Gradient::kNone);
const Kernel<dequantize_packed> kDequantizePacked("dequantize_packed", Gradient::kRefused);
const Kernel<index_select> kIndexSelect("index_select", Gradient::kNone);

}  // namespace
}  // namespace qlr
