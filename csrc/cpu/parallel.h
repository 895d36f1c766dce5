// parallel.h divides work over the host's threads. Which way is faster depends on the sizes of a
// layer: parts of the batch never wait for each other, threads that share the units stream fewer
// weights each.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "engine.h"
#include "microkernel.h"

namespace brnn::BRNN_ISA {

using cpu::Host;

// While it lives, its thread takes subnormal numbers for zero, or does not.
class FlushSubnormals {
 public:
  explicit FlushSubnormals(bool flush) { set((before_ & ~kFlush) | (flush ? kFlush : 0)); }
  ~FlushSubnormals() { set(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

  static bool on() { return get() & kFlush; }

 private:
#if defined(__SSE__)
  static constexpr unsigned kFlush = 0x8040;  // results and operands
  static unsigned get() { return _mm_getcsr(); }
  static void set(unsigned control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
  static constexpr unsigned kFlush = 1 << 24;
  static unsigned get() { return __builtin_aarch64_get_fpcr(); }
  static void set(unsigned control) { __builtin_aarch64_set_fpcr(control); }
#else
  static constexpr unsigned kFlush = 0;
  static unsigned get() { return 0; }
  static void set(unsigned) {}
#endif
  const unsigned before_ = get();
};

// Calls f(begin, end) on ranges that cover [0, count). All threads treat subnormal numbers as the
// calling one does, for which torch.set_flush_denormal may have been called, unless the host wants
// them flushed.
template <class F>
void parallel_ranges(const Host& host, int64_t count, const F& f) {
  struct Context {
    const F& f;
    bool flush_subnormals;
  } context = {f, host.flush_subnormals || FlushSubnormals::on()};
  host.parallel_for(
      count,
      [](void* opaque, int64_t begin, int64_t end) {
        const auto& context = *static_cast<const Context*>(opaque);
        const FlushSubnormals flush(context.flush_subnormals);
        context.f(begin, end);
      },
      &context);
}

// A Piece is one of several threads that share the items of a phase. Each has a range of its own,
// so that it meets the same weights again in the next phase, and helps the others when that is
// done: on a machine with other work the threads are not equally fast.
struct Piece {
  static constexpr int64_t kApart = 8;  // counters in cache lines of their own
  int64_t index, of;
  int64_t* taken;  // [of * kApart] how many items of each range are taken

  template <class F>
  void each(int64_t items, bool backwards, const F& f) const {
    if (of == 1) {  // nobody to share with: an atomic counter would wait for all stores
      for (int64_t k = 0; k < items; ++k) f(backwards ? items - 1 - k : k);
      return;
    }
    for (int64_t i = 0; i < of; ++i) {
      const int64_t owner = (index + i) % of;
      const Share share = share_of(items, owner, of);
      for (int64_t k; (k = take(owner)) < share.size();)
        f(backwards ? share.end - 1 - k : share.begin + k);
    }
  }
  template <class F>
  void each(int64_t items, const F& f) const {
    each(items, false, f);
  }

  // Gives the least number of which `groups` times a multiple is a multiple of the threads: so many
  // items of a group, and all are done at once.
  int64_t fair(int64_t groups) const {
    int64_t number = 1;
    while (groups * number % of) ++number;
    return number;
  }

 private:
  int64_t take(int64_t owner) const {
    return __atomic_fetch_add(taken + owner * kApart, 1, __ATOMIC_RELAXED);
  }
};

// Calls f(piece) on each of `of` pieces; `taken` is as in Piece and of any content.
template <class F>
void parallel_pieces(const Host& host, int64_t of, int64_t* taken, const F& f) {
  for (int64_t i = 0; i < of; ++i) taken[i * Piece::kApart] = 0;
  parallel_ranges(host, of, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(Piece{i, of, taken});
  });
}

// A Split divides a recurrence into parts of the batch that never wait for each other, or, with
// units > 1, among threads that share the hidden units of all sequences: they meet after every
// step, but each streams its share of the weights only.
struct Split {
  int64_t batch, units;

  // Chooses for steps that multiply B rows by weights [columns, K] of elements E.
  template <class E>
  static Split of(int threads, int64_t B, int64_t columns, int64_t K) {
    const Core core = {.flops = Element<E>::flops, .element_bytes = sizeof(E)};
    return {threads, B, columns, K, core, Product<E>::even ? 20 : Product<E>::rows(1)};
  }

 private:
  // This is what a step's time depends on beside its sizes.
  struct Core {
    double flops;
    int64_t element_bytes;
  };

  Split(int threads, int64_t B, int64_t columns, int64_t K, const Core& core, int64_t part_rows)
      : batch(1), units(1) {
    const int64_t parts = threads < B ? threads : B;
    const double by_batch = step_time(divide_up(B, parts), columns, K, core);
    const double by_units = step_time(B, divide_up(columns, threads), K, core) + kMeeting;
    if (by_batch <= by_units || threads == 1) {
      // Parts are more than threads where there are rows enough: who is done takes another.
      const int64_t most = B / part_rows / parts;
      batch = parts * (threads == 1 || most < 1 ? 1 : most < 3 ? most : 3);
    } else {
      units = threads;
    }
  }

  static constexpr double kMeeting = 4e-6;  // seconds

  // Models the seconds that a step takes one thread. It only has to rank splits.
  static double step_time(int64_t rows, int64_t columns, int64_t K, const Core& core) {
    const double flop = 2.0 * rows * columns * K, bytes = 1.0 * columns * K * core.element_bytes;
    const double bandwidth = bytes > 1.5e6 ? 14e9 : 100e9;  // beyond a core's own cache, or in it
    const double product = flop / core.flops, stream = bytes / bandwidth;
    return product > stream ? product : stream;
  }
};

// Runs a recurrence that is written as phases: over_time(run) calls run(phase) for one after the
// other, phase(part, piece) does its share. A part of the batch goes through all phases by itself;
// threads that share units do one phase at a time, together.
template <class OverTime>
void run_phases(const Host& host, const Split& split, int64_t* taken, const OverTime& over_time) {
  if (split.units == 1) {
    parallel_pieces(host, host.threads, taken, [&](const Piece& piece) {
      piece.each(split.batch, [&](int64_t part) {
        over_time([&](const auto& phase) {
          int64_t alone = 0;
          phase(part, Piece{0, 1, &alone});
        });
      });
    });
  } else {
    over_time([&](const auto& phase) {
      parallel_pieces(host, split.units, taken, [&](const Piece& piece) { phase(0, piece); });
    });
  }
}

}  // namespace brnn::BRNN_ISA
