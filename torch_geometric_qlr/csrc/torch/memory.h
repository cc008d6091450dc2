// Memory for large results: on huge pages where the system has them, and used again.
//
// A gather reads rows at random, and with pages of 4 KiB most of those reads miss the TLB as well as
// the cache. An allocator that recycles small pages cannot be asked for huge ones, so what is larger
// than a few megabytes gets mappings of its own; and because the system clears every fresh page, a few
// mappings are kept for the next result of about the same size, as torch does on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qlr {

// Uninitialized memory that lives as long as this does, aligned for any vector. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  // Whether results of this size get a mapping of their own here.
  static bool is_mapped(int64_t bytes);
  void* data() const { return data_; }
  // After `release` somebody else gives the memory back: with `give_back(data)`, if it is mapped.
  void release() { data_ = nullptr; }
  static void give_back(void* data);

 private:
  void* data_ = nullptr;
  bool mapped_ = false;
};

// count * size, or std::bad_alloc where no memory could be that large.
int64_t bytes_of(int64_t count, int64_t size);

}  // namespace qlr
