#include "memory.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../qlr.h"

namespace qlr {
namespace {

constexpr int64_t kPage = 1 << 12, kHugePage = 1 << 21;
// Smaller results come from torch.
constexpr int64_t kSmallest = 1 << 15;
// Smaller ones fit the caches and what their TLB covers.
constexpr int64_t kSmallestHuge = 2 * kHugePage;
constexpr int64_t kMaxIdle = 256 << 20;
constexpr size_t kMaxIdleMappings = 512;  // which are searched one after the other
constexpr std::align_val_t kAlignment{64};

struct Mapping {
  void* base;
  int64_t size;
};

#if defined(MADV_HUGEPAGE)
constexpr bool kHasHugePages = true;
Mapping map(int64_t size) {
  void* const base =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  if (size >= kSmallestHuge) madvise(base, size, MADV_HUGEPAGE);
  return {base, size};
}
void unmap(const Mapping& mapping) { munmap(mapping.base, mapping.size); }
#else
constexpr bool kHasHugePages = false;
Mapping map(int64_t) { throw std::bad_alloc(); }
void unmap(const Mapping&) {}
#endif

// Mappings that nothing uses any more, the oldest first, and those that are in use by where their data
// begin.
class Pool {
 public:
  void* take(int64_t bytes) {
    const bool huge = bytes >= kSmallestHuge;
    const int64_t page = huge ? kHugePage : kPage, whole = (bytes + page - 1) / page * page;
    const std::lock_guard<std::mutex> lock(mutex_);
    // One more page, to begin on a boundary: only whole huge pages are backed by one.
    const Mapping mapping = find(huge ? whole + page : whole);
    const uintptr_t base = reinterpret_cast<uintptr_t>(mapping.base);
    void* const data = reinterpret_cast<void*>((base + page - 1) / page * page);
    used_[data] = mapping;
    return data;
  }
  void give_back(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto at = used_.find(data);
    idle_.push_back(at->second);
    used_.erase(at);
    while (idle_.size() > kMaxIdleMappings || bytes() > kMaxIdle) drop();
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (!idle_.empty()) drop();
  }
  std::pair<int64_t, int64_t> idle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(idle_.size()), bytes()};
  }

 private:
  Mapping find(int64_t size) {
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      // Much more than is needed would leave nothing for the result it came from.
      const bool fits = size <= it->size && it->size <= 2 * size;
      // Of equal ones the latest, which may still be in the cache.
      if (fits && (best == idle_.end() || it->size <= best->size)) best = it;
    }
    if (best == idle_.end()) return map(size);
    const Mapping found = *best;
    idle_.erase(best);
    return found;
  }
  int64_t bytes() const {
    int64_t total = 0;
    for (const Mapping& mapping : idle_) total += mapping.size;
    return total;
  }
  void drop() {
    unmap(idle_.front());
    idle_.erase(idle_.begin());
  }
  std::vector<Mapping> idle_;
  std::unordered_map<void*, Mapping> used_;
  std::mutex mutex_;
};

// Never destroyed: the last tensor may outlive what the process tidies up at its end.
Pool& pool() {
  static Pool* const only = new Pool;
  return *only;
}

}  // namespace

int64_t bytes_of(int64_t count, int64_t size) {
  if (count < 0 || size < 0) throw std::bad_alloc();
  // With room for rounding up to pages.
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 4;
  if (size != 0 && count > kMost / size) throw std::bad_alloc();
  return count * size;
}

bool Buffer::is_mapped(int64_t bytes) { return kHasHugePages && bytes >= kSmallest; }

Buffer::Buffer(int64_t bytes) : mapped_(is_mapped(bytes)) {
  if (mapped_) data_ = pool().take(bytes);
  else data_ = ::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 1)), kAlignment);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (mapped_) give_back(data_);
  else ::operator delete(data_, kAlignment);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), mapped_(other.mapped_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

void Buffer::give_back(void* data) { pool().give_back(data); }

}  // namespace qlr

void qlr_release_memory() { qlr::pool().clear(); }
int64_t qlr_idle_mappings() { return qlr::pool().idle().first; }
int64_t qlr_idle_bytes() { return qlr::pool().idle().second; }
