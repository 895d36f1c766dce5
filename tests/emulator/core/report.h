// report.h - words for errors: who, where, and what everybody else is doing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../emulator.h"

namespace emu {

struct Block;
struct Cluster;
struct Shape;
struct Thread;

std::string name_of(const Block& block);
std::string name_of(const Thread& thread);
// Name, what it does and where.
std::string describe(const Thread& thread);

inline bool same_line(Site a, Site b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}
std::string source_line(Site site);
// Of a return address, by addr2line: the innermost inlined call that is not a primitive.
std::string source_line(const void* instruction);

// The threads that have not exited, grouped by what they do and where.
std::string census(const std::vector<std::unique_ptr<Cluster>>& clusters);
std::string deadlock_report(const std::vector<std::unique_ptr<Cluster>>& clusters);
std::string livelock_report(const std::vector<std::unique_ptr<Cluster>>& clusters);

void check_launch(const Shape& shape);  // throws Error, as the CUDA runtime would refuse it

}  // namespace emu
