// ready_queue.cpp - round robin, random and block priority.
#include "ready_queue.h"

#include <algorithm>

#include "machine.h"

namespace emu {

void ReadyQueue::add(Block& block) {
  if (schedule_ != Schedule::block_priority) return;
  favourites_.insert(favourites_.begin() + random_.below(favourites_.size() + 1), &block);
}

void ReadyQueue::remove(Block& block) { std::erase(favourites_, &block); }

void ReadyQueue::push(Thread& thread) {
  if (schedule_ == Schedule::block_priority) {
    thread.block->ready.push_back(&thread);
  } else if (schedule_ == Schedule::random) {
    threads_.push_back(&thread);
  } else {
    if (count_ == threads_.size()) {  // a full ring: unroll it and double its room
      std::rotate(threads_.begin(), threads_.begin() + head_, threads_.end());
      head_ = 0;
      threads_.resize(std::max<size_t>(64, 2 * count_));
    }
    threads_[(head_ + count_++) & (threads_.size() - 1)] = &thread;
  }
}

Thread* ReadyQueue::take(std::vector<Thread*>& threads) {
  std::swap(threads[random_.below(threads.size())], threads.back());
  Thread* thread = threads.back();
  threads.pop_back();
  return thread;
}

Thread* ReadyQueue::pop(bool starving) {
  if (schedule_ == Schedule::block_priority) return from_favourite(starving);
  if (schedule_ == Schedule::random) return threads_.empty() ? nullptr : take(threads_);
  if (count_ == 0) return nullptr;
  Thread* thread = threads_[head_];
  head_ = (head_ + 1) & (threads_.size() - 1);
  --count_;
  return thread;
}

Thread* ReadyQueue::from_favourite(bool starving) {
  constexpr uint32_t reign = 4096;  // pops between changes of favour
  const size_t n = favourites_.size();
  if (n == 0) return nullptr;
  if (++pops_ % reign == 0)
    for (size_t i = n; i > 1; --i) std::swap(favourites_[i - 1], favourites_[random_.below(i)]);
  const size_t first = starving ? random_.below(n) : 0;
  for (size_t i = 0; i < n; ++i) {
    std::vector<Thread*>& ready = favourites_[(first + i) % n]->ready;
    if (!ready.empty()) return take(ready);
  }
  return nullptr;
}

}  // namespace emu
