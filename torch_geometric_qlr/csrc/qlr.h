// The plain C interface of the CPU kernels. Pointers and sizes only: no torch, no Python, no
// exceptions; torch/ makes ops of them. The layout of packed rows is written down in layout.h and in ops/layout.py.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define QLR_EXPORT __declspec(dllexport)
#else
#define QLR_EXPORT __attribute__((visibility("default")))
#endif

extern "C" {

// Bumped with every change of a structure or signature; the binding refuses any other.
#define QLR_ABI_VERSION 10

enum QlrStatus : int32_t {
  QLR_OK = 0,
  QLR_BAD_ROWPTR = 1,  // not ascending from 0 to the number of edges
  QLR_BAD_INDEX = 2,   // a column or row index out of range
  QLR_NO_MEMORY = 3,
  QLR_UNSUPPORTED = 4,  // a combination no kernel takes: the caller has to fall back
  QLR_NOT_FINITE = 5,   // a value that was to become a code is NaN or infinite
  QLR_BAD_CODE = 6,     // a code that needs more bits than it shall have
};

// Each means those before it as well, as far as a processor has them. NEON is that of aarch64, with
// dot products of bytes.
enum QlrIsa : int32_t {
  QLR_PORTABLE = 0,
  QLR_AVX2 = 1,
  QLR_AVX_VNNI = 2,
  QLR_AVX512 = 3,
  QLR_AMX = 4,
  QLR_NEON = 5,
  QLR_BEST = QLR_NEON,
};

// Which dimension scale and zero point run along.
enum QlrAxis : int32_t { QLR_PER_TENSOR = -1, QLR_PER_ROW = 0, QLR_PER_COLUMN = 1 };

// A matrix of packed codes with value = scale * (code - zero).
struct QlrPacked {
  const uint8_t* data;
  int64_t rows;
  int64_t cols;
  int32_t bits;  // 1, 2, 4, 8
  int32_t axis;  // QlrAxis
  const float* scale;
  const float* zero;
};

// How values become codes: round(x / scale + zero), clamped, and for `truncate` cut from 8 bits.
struct QlrQuantizer {
  const float* scale;
  const float* zero;
  int32_t axis;      // QlrAxis
  int32_t bits;      // 1 .. 8
  int32_t truncate;  // 0 or 1
  float skew;
};

// The same for rows with a range of their own each, which is taken from their values.
struct QlrRowQuantizer {
  float multiplier;  // of the scale
  int32_t bits;      // 1 .. 8
  int32_t truncate;  // 0 or 1
  int32_t aligned;   // whether the zero point is a level of the truncated codes
  float skew;
};

struct QlrGraph {
  const int64_t* rowptr;
  const int32_t* col;
  int64_t rows;
  int64_t edges;
  const float* edge_weight;    // [edges] or null
  const int8_t* edge_codes;    // [edges] or null: weights that are integers, in place of floats
  const float* source_weight;  // [source rows] or null
  int32_t checked;             // 1 if an earlier call with the same indices went well
  const int32_t* digits;       // what qlr_edge_digits made of edge_weight, or null
};

// What happens to a row of sums, and where it goes: with a quantizer to `packed`, else to `out`. The
// address of what has no elements may be null, and says nothing.
struct QlrEpilogue {
  const float* row_scale;  // [rows] or null
  const float* bias;       // [cols] or null
  const float* addend;     // [rows, cols] or null
  float addend_scale;
  int32_t mean;
  int32_t relu;
  float* out;
  uint8_t* packed;
  const QlrQuantizer* quantizer;  // or null; per tensor or per column
};

// Smoothness-aware message propagation, see torch_geometric_qlr/nn/propagation/smp.py.
struct QlrSmp {
  int64_t steps;
  const float* row_scale;  // of all sums, [rows] or null
  float kept;              // 1 - (1 + mu) eta
  float spread;            // mu eta
  float eta, eta_lambda, eta_slack;
  float multiplier, slack;  // to begin with
  float bound;
  int32_t lagrangian;  // 0 or 1
  int32_t projection;  // sign that the multiplier is kept to, 0 for none
};

// How a range that learns moves on and makes its grid.
struct QlrObserver {
  int32_t axis, bits;
  int32_t truncate, aligned;  // 0 or 1
  const float* lo;  // the range that follows what is seen; null: what is seen is the range
  const float* hi;
  const float* gamma;
  int64_t multipliers;     // of gamma: 1, or one per group
  float momentum, factor;  // of the average, and of the gradient of gamma
};

// Where it goes, one number per group and one per value.
struct QlrObserved {
  float *lo, *hi, *own_scale, *scale, *zero;
  float* x_hat;
  uint8_t* mask;
};

QLR_EXPORT int32_t qlr_abi_version();
QLR_EXPORT int32_t
qlr_has_isa(int32_t isa);  // whether there is code for it, and the processor runs it
QLR_EXPORT int32_t qlr_has_vnni();
QLR_EXPORT int32_t qlr_has_openmp();

QLR_EXPORT int32_t qlr_quantize_pack(const float* x, int64_t rows, int64_t cols,
                                     const QlrQuantizer* quantizer, uint8_t* packed,
                                     int32_t threads, int32_t isa);
// `scale` and `zero` are how the codes of each row are read back.
QLR_EXPORT int32_t qlr_quantize_rows(const float* x, int64_t rows, int64_t cols,
                                     const QlrRowQuantizer* quantizer, uint8_t* packed,
                                     float* scale, float* zero, int32_t threads, int32_t isa);
QLR_EXPORT int32_t qlr_pack(const uint8_t* codes, int64_t rows, int64_t cols, int32_t bits,
                            uint8_t* packed, int32_t threads, int32_t isa);
QLR_EXPORT int32_t qlr_unpack(const QlrPacked* source, uint8_t* codes, int32_t threads,
                              int32_t isa);
QLR_EXPORT int32_t qlr_dequantize(const QlrPacked* source, float* values, int32_t threads,
                                  int32_t isa);
QLR_EXPORT int32_t qlr_index_select(const uint8_t* packed, int64_t rows, int64_t stride,
                                    const int64_t* index, int64_t count, uint8_t* out,
                                    int32_t threads);

QLR_EXPORT int32_t qlr_packed_spmm(const QlrGraph* graph, const QlrPacked* source,
                                   const QlrEpilogue* epilogue, int32_t threads, int32_t isa);
// The edge weights as the sums of qlr_packed_spmm want them, for graphs that are used several times:
// 4 * (2 * rows + edges / 4) integers. QLR_UNSUPPORTED where the sums take the weights as they are.
QLR_EXPORT int32_t qlr_edge_digits(const QlrGraph* graph, int32_t* digits, int32_t threads,
                                   int32_t isa);
QLR_EXPORT int32_t qlr_packed_extremum(const QlrGraph* graph, const QlrPacked* source,
                                       int32_t largest, const QlrEpilogue* epilogue,
                                       int32_t threads, int32_t isa);
// `alpha` is [edges, heads]; the columns of `source` are split evenly among the heads.
QLR_EXPORT int32_t qlr_packed_attention(const QlrGraph* graph, const QlrPacked* source,
                                        const float* alpha, int64_t heads,
                                        const QlrEpilogue* epilogue, int32_t threads, int32_t isa);
QLR_EXPORT int32_t qlr_packed_linear(const QlrPacked* input, const QlrPacked* weight,
                                     const QlrEpilogue* epilogue, int32_t threads, int32_t isa);
// The product of what qlr_quantize_pack, or without a quantizer qlr_quantize_rows, makes of x.
QLR_EXPORT int32_t qlr_quantize_linear(const float* x, int64_t rows, int64_t cols,
                                       const QlrQuantizer* quantizer, const QlrRowQuantizer* own,
                                       const QlrPacked* weight, const QlrEpilogue* epilogue,
                                       int32_t threads, int32_t isa);
// All steps in one call. `quantizers` has two per step, one number each: of the representation and of
// its change. `sources` are, in the same order, how the gather reads their codes; their `data` is
// room for packed rows. `work` is room for three matrices like x.
QLR_EXPORT int32_t qlr_packed_smp(const QlrGraph* graph, const float* x, int64_t cols,
                                  const QlrQuantizer* quantizers, const QlrPacked* sources,
                                  const QlrSmp* smp, float* work, float* out, int32_t threads,
                                  int32_t isa);
QLR_EXPORT int32_t qlr_float_spmm(const QlrGraph* graph, const float* x, int64_t source_rows,
                                  int64_t cols, const QlrEpilogue* epilogue, int32_t threads,
                                  int32_t isa);

QLR_EXPORT int32_t qlr_fake_quantize(const float* x, int64_t rows, int64_t cols,
                                     const QlrQuantizer* quantizer, float* x_hat, uint8_t* mask,
                                     int32_t threads, int32_t isa);
// The same with a range that is observed. QLR_NOT_FINITE where there is none.
QLR_EXPORT int32_t qlr_observed_quantize(const float* x, int64_t rows, int64_t cols,
                                         const QlrObserver* observer, const QlrObserved* out,
                                         int32_t threads, int32_t isa);
// `reduced` has one entry per tensor, row or column, as `axis` says.
QLR_EXPORT int32_t qlr_fake_quantize_backward(const float* grad, const float* x, const float* x_hat,
                                              const uint8_t* mask, int64_t rows, int64_t cols,
                                              int32_t axis, float* grad_x, float* reduced,
                                              int32_t threads, int32_t isa);

// The ops of torch that the kernels answer (torch/). 0 is success.
//
// A program without Python calls qlr_register_ops once, with the path of libtorch_cpu or null for the
// one in the process; then `torch.ops.qlr` is as its exported programs expect. Python defines the ops
// itself, with what needs Python, and calls the others.
QLR_EXPORT int32_t qlr_register_ops(const char* libtorch_cpu);
QLR_EXPORT int32_t qlr_bind_torch(const char* libtorch_cpu);
QLR_EXPORT int32_t qlr_register_kernels();
QLR_EXPORT int32_t qlr_has_kernel(const char* op);  // 1 or 0
QLR_EXPORT const char* qlr_schemas();               // ops/schemas.inc, as it was at build time

// Between a kernel and its companion in Python, see torch/detour.h. All but the first two are about
// the calling thread.
QLR_EXPORT void qlr_expect_companions();
QLR_EXPORT void qlr_count_choices(int32_t more);  // of back ends, anywhere in the process
QLR_EXPORT void qlr_choose_once(int32_t isa);     // the next op runs on this, and asks nobody
QLR_EXPORT int32_t qlr_take_refusal();            // why a kernel asks; QLR_OK if none does
QLR_EXPORT const char* qlr_refusal_reason();
QLR_EXPORT void qlr_report_error(const char* words);

// Memory that is kept for coming results.
QLR_EXPORT void qlr_release_memory();
QLR_EXPORT int64_t qlr_idle_mappings();
QLR_EXPORT int64_t qlr_idle_bytes();
}
