// Packed rows: a sequence of units of 16 bytes (rows that fit into 16) or 32 bytes (all others).
// Field k of byte j in unit u is the code of column (u * fields + k) * unit + j.
#pragma once

#include <cstdint>

namespace qlr {
namespace {  // one copy per instruction set, see schedule.h

struct Layout {
  int64_t cols;
  int bits, fields, unit;
  int64_t units, stride;

  Layout(int64_t num_cols, int num_bits) : cols(num_cols), bits(num_bits), fields(8 / num_bits) {
    unit = num_cols * num_bits <= 128 ? 16 : 32;
    units = unit == 16 ? 1 : (num_cols * num_bits + 255) / 256;
    stride = units * unit;
  }
  // Codes a row has room for; buffers indexed by column have this size.
  int64_t padded_cols() const { return units * unit * fields; }
};

inline int storage_bits(int bits) { return bits <= 2 ? bits : bits <= 4 ? 4 : 8; }

}  // namespace
}  // namespace qlr
