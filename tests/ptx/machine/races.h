// races.h - happens-before: two accesses to the same bytes, one of them a write, not both of them
// strong (relaxed, acquire, release), need an order by barriers or by release and acquire. The
// shadow remembers the last write and the reads after it for every two bytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ptx {

struct Warp;
struct Operation;

struct ShadowCell {
  struct Write {
    int block = -1;
    uint32_t epoch = 0;
    int thread = 0, line = 0;
    bool strong = false;
    bool copying = false;  // an asynchronous copy that has not been waited for
  } write;
  struct Read {
    int block = -1;
    uint32_t epoch = 0, lanes = 0;
    int warp = 0, line = 0;
    bool strong = false;
  };
  std::vector<Read> reads;
};

// 16 bytes: one cell, as long as all accesses are as wide.
struct ShadowLine {
  ShadowCell whole;
  std::unique_ptr<std::array<ShadowCell, 8>> parts;
};

class GlobalShadow {
 public:
  ShadowLine& line(uint64_t address);

 private:
  using Page = std::array<ShadowLine, 64>;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t last_number_ = ~0ull;
  Page* last_ = nullptr;
};

// An access to the shared memory of a block by a thread of another.
struct PeerAccess {
  int block, thread, line;
  uint32_t epoch;
};

enum class Access { read, write, copy };  // copy: the beginning of an asynchronous one

void watch_global(Warp& w, int lane, const Operation& o, uint64_t address, int bytes, Access how,
                  bool strong);
// In the shared memory of `block`, the own one or that of a peer.
void watch_shared(Warp& w, int lane, const Operation& o, int slot, uint64_t offset, int bytes,
                  Access how, bool strong);
// The copy has been waited for.
void watch_arrival(Warp& w, int lane, const Operation& o, uint64_t offset, int bytes);

}  // namespace ptx
