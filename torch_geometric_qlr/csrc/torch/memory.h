// Memory for results: used again, and on huge pages where the system has them.
//
// The system clears every fresh page, and malloc gives what lies free at the end of its heap back: a
// training step on small graphs then spends a twentieth of its time on pages that it had before. So
// results of some tens of kilobytes and more get mappings of their own, of which some are kept for the
// next result of about the same size, as torch does on a GPU. And a gather reads rows at random: with
// pages of 4 KiB most of those reads miss the TLB as well as the cache. So what is larger than a few
// megabytes lies on huge pages, which an allocator that recycles small ones cannot be asked for.
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
