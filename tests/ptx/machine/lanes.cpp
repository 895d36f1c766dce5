// lanes.cpp - instructions in which lanes of a warp meet. PTX ISA 9.0, sections 9.7.9.6
// (shfl.sync), 9.7.13.5 (vote.sync), 9.7.13.3 (bar.warp.sync), 9.7.14.5 (mma, its fragments,
// ldmatrix).
#include <cstring>

#include "apply.h"

namespace ptx {

namespace {

// Lanes that wait with the same mask: in the same place, or, where the instruction is not .aligned,
// in another that is like it; nvcc makes such out of one call.
uint32_t lanes_with(const Warp& w, const Operation& o, uint32_t members) {
  uint32_t here = 0;
  for (int i = 0; i < kWarp; ++i) {
    if (!(w.waiting >> i & 1) || w.member[i] != members) continue;
    const Operation& other = w.launch->kernel->operations[w.pc[i]];
    here |= uint32_t(&other == &o || (!o.aligned && other.handler == o.handler)) << i;
  }
  return here;
}

}  // namespace

Step meet(Warp& w, const Operation& o, uint32_t mask, const uint32_t* members, Handler work) {
  bool whole = mask == kAll;
  for (int i = 0; whole && members && i < kWarp; ++i) whole = members[i] == kAll;
  if (whole) return work(w, o, kAll);

  save_places(w, w.active & ~mask, w.at + 1);
  save_places(w, mask, w.at);
  w.ready &= ~mask, w.waiting |= mask;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    w.member[lane] = members ? members[lane] : kAll;
    if (!(w.member[lane] >> lane & 1))
      fail(w, lane, o,
           format("misuse: %s with a mask %#x without its own lane", o.name, w.member[lane]));
  }
  check_exits(w);
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    if (!(w.waiting >> lane & 1)) continue;  // met just now
    const uint32_t all = w.member[lane];
    const uint32_t here = lanes_with(w, o, all);
    const uint32_t elsewhere = all & w.waiting & ~here;
    if (elsewhere) {
      const Operation& other = w.launch->kernel->operations[w.pc[std::countr_zero(elsewhere)]];
      fail(w, lane, o,
           format("divergence: %s, but other lanes of its mask are in %s at PTX line %d, %s",
                  o.name, other.name, other.line, w.launch->kernel->where(other.line).c_str()));
    }
    if (all & ~here) continue;
    w.waiting &= ~all, w.ready |= all;
    w.apart = true;
    work(w, o, all);
    w.apart = false;
    if (!w.held) each(all, [&](int i) { ++w.pc[i]; });
  }
  return Step::regroup;
}

void check_exits(Warp& w) {
  for (uint32_t left = w.exited ? w.waiting : 0; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    if (!(w.member[lane] & w.exited)) continue;
    const Operation& o = w.launch->kernel->operations[w.pc[lane]];
    fail(w, lane, o, format("divergence: %s waits for lanes that have exited", o.name));
  }
}

void add_to(ClockJoin& join, const Warp& w, uint32_t lanes) {
  const int threads = int(w.launch->grid.threads);
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    join.join(w.clocks[lane]);
    join.see(w.block->id, threads, w.thread(lane), w.epoch);
  }
}

namespace {

Step sync_lanes(Warp& w, const Operation&, uint32_t lanes) {
  buffers_to_block(w, lanes);
  if (!options.races) return Step::next;
  ClockJoin join;
  add_to(join, w, lanes);
  const auto clock = join.take();
  for (uint32_t left = lanes; left; left &= left - 1) w.clocks[std::countr_zero(left)] = clock;
  ++w.epoch;
  return Step::next;
}
Step warp_sync(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, w.from<uint32_t>(o.at[0]), sync_lanes);
}

// The instruction of a lane among lanes that have met.
const Operation& own(const Warp& w, const Operation& o, int lane) {
  return w.apart ? w.launch->kernel->operations[w.pc[lane]] : o;
}
void set_bit(uint32_t& word, int bit, bool value) {
  word = value ? word | 1u << bit : word & ~(1u << bit);
}

enum class Shuffle { up, down, bfly, idx };

// Places: d, p (or none), a, b, c, membermask.
template <Shuffle How>
Step shuffle_lanes(Warp& w, const Operation& o, uint32_t lanes) {
  const auto operand = [&](int i, int lane) {
    return w.from<uint32_t>(own(w, o, lane).at[i])[lane];
  };
  uint32_t result[kWarp], valid = 0;
  each(lanes, [&](int lane) {
    const uint32_t b = operand(3, lane), c = operand(4, lane);
    const int bval = int(b & 31), cval = int(c & 31), segment = int(c >> 8 & 31);
    const int most = (lane & segment) | (cval & ~segment), least = lane & segment;
    int j = 0;
    bool p = false;
    switch (How) {
      case Shuffle::up: j = lane - bval, p = j >= most; break;
      case Shuffle::down: j = lane + bval, p = j <= most; break;
      case Shuffle::bfly: j = lane ^ bval, p = j <= most; break;
      case Shuffle::idx: j = least | (bval & ~segment), p = j <= most; break;
    }
    if (!p) j = lane;
    if (!(lanes >> j & 1))
      fail(w, lane, o, format("misuse: shfl reads lane %d, which is not in the mask", j));
    result[lane] = operand(2, j);
    valid |= uint32_t(p) << lane;
  });
  each(lanes, [&](int lane) {
    const Operation& x = own(w, o, lane);
    w.to<uint32_t>(x.at[0])[lane] = result[lane];
    if (x.at[1] != kNone) set_bit(*w.to<uint32_t>(x.at[1]), lane, valid >> lane & 1);
  });
  return Step::next;
}
template <Shuffle How>
Step shuffle(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, w.from<uint32_t>(o.at[5]), shuffle_lanes<How>);
}

// Places: d, the predicate, membermask; flip: `!p` in o.number.
enum class Vote { any, all, ballot };
template <Vote How>
Step vote_lanes(Warp& w, const Operation& o, uint32_t lanes) {
  uint32_t votes = 0;
  each(lanes, [&](int i) {
    const Operation& x = own(w, o, i);
    votes |= (*w.from<uint32_t>(x.at[1]) ^ uint32_t(x.number)) & 1u << i;
  });
  const bool result = How == Vote::any ? votes != 0 : votes == lanes;
  each(lanes, [&](int i) {
    const int32_t d = own(w, o, i).at[0];
    if (How == Vote::ballot)
      w.to<uint32_t>(d)[i] = votes;
    else
      set_bit(*w.to<uint32_t>(d), i, result);
  });
  return Step::next;
}
template <Vote How>
Step vote(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, w.from<uint32_t>(o.at[2]), vote_lanes<How>);
}

enum class Type { bf16, f16, tf32 };
template <Type T>
float number_of(uint32_t word, int half) {
  if (T == Type::tf32) return std::bit_cast<float>(word & ~0x1FFFu);  // lower bits are ignored
  const uint16_t bits = uint16_t(half ? word >> 16 : word);
  return T == Type::bf16 ? from_bfloat16(bits) : from_float16(bits);
}

// d [16, 8] = a [16, K] b [K, 8] + c, summed in double and rounded once. Places: d, a, b, c.
template <Type T>
Step mma_lanes(Warp& w, const Operation& o, uint32_t) {
  constexpr int kWords = 4, K = T == Type::tf32 ? 8 : 16, kPer = K / 8;  // numbers of a word
  double a[16][K], b[K][8], sum[16][8];
  for (int word = 0; word < kWords; ++word) {
    const uint32_t* const x = w.from<uint32_t>(o.at[4 + word]);
    for (int lane = 0; lane < kWarp; ++lane)
      for (int half = 0; half < kPer; ++half)
        a[lane / 4 + word % 2 * 8][(lane % 4 + word / 2 * 4) * kPer + half] =
            double(number_of<T>(x[lane], half));
  }
  for (int word = 0; word < 2; ++word) {
    const uint32_t* const x = w.from<uint32_t>(o.at[8 + word]);
    for (int lane = 0; lane < kWarp; ++lane)
      for (int half = 0; half < kPer; ++half)
        b[(lane % 4 + word * 4) * kPer + half][lane / 4] = double(number_of<T>(x[lane], half));
  }
  const auto entry = [](int lane, int i) {
    return std::pair(lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
  };
  for (int i = 0; i < 4; ++i) {
    const float* const c = w.from<float>(o.at[10 + i]);
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto [row, column] = entry(lane, i);
      sum[row][column] = double(c[lane]);
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; ++k)
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
  for (int i = 0; i < 4; ++i) {
    float* const d = w.to<float>(o.at[i]);
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto [row, column] = entry(lane, i);
      d[lane] = float(sum[row][column]);
    }
  }
  return Step::next;
}
template <Type T>
Step mma(Warp& w, const Operation& o, uint32_t mask) {
  return meet(w, o, mask, nullptr, mma_lanes<T>);
}

// Lanes 8 i to 8 i + 7 give the rows of matrix i. Places: four of d, the address.
template <bool Transposed>
Step load_matrices(Warp& w, const Operation& o, uint32_t lanes) {
  uint16_t m[4][8][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const uint64_t address = uint32_t(w.from<uint32_t>(o.at[4])[lane] + uint32_t(o.number));
    check_alignment(w, lane, o, address, 16);
    std::memcpy(m[lane / 8][lane % 8], shared_at(w, lane, o, address, 16), 16);
    watch_shared(w, lane, o, w.block->slot, address, 16, Access::read, false);
  }
  for (int matrix = 0; matrix < 4; ++matrix)
    each(lanes, [&, d = w.to<uint32_t>(o.at[matrix])](int lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint32_t low = Transposed ? m[matrix][c][r] : m[matrix][r][c];
      d[lane] = low | uint32_t(Transposed ? m[matrix][c + 1][r] : m[matrix][r][c + 1]) << 16;
    });
  return Step::next;
}
template <bool Transposed>
Step ldmatrix(Warp& w, const Operation& o, uint32_t mask) {
  if (gives_way(w, false)) return Step::stay;
  return meet(w, o, mask, nullptr, load_matrices<Transposed>);
}

}  // namespace

std::vector<Entry> lane_operations() {
  return {
      {"bar.warp.sync", warp_sync},
      {"shfl.sync.up.b32", shuffle<Shuffle::up>},
      {"shfl.sync.down.b32", shuffle<Shuffle::down>},
      {"shfl.sync.bfly.b32", shuffle<Shuffle::bfly>},
      {"shfl.sync.idx.b32", shuffle<Shuffle::idx>},
      {"vote.sync.any.pred", vote<Vote::any>},
      {"vote.sync.all.pred", vote<Vote::all>},
      {"vote.sync.ballot.b32", vote<Vote::ballot>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", mma<Type::bf16>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", mma<Type::f16>},
      {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", mma<Type::tf32>},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", ldmatrix<false>},
      {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", ldmatrix<true>},
  };
}

}  // namespace ptx
