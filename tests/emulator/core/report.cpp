// report.cpp - words for errors.
#include "report.h"

#include <dlfcn.h>

#include <cstdio>
#include <map>

#include "machine.h"

namespace emu {
namespace {

std::string indexed(const dim3& index) {
  std::string text = std::to_string(index.x);
  if (machine->shape.grid.y > 1 || machine->shape.grid.z > 1)
    text = "(" + text + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
  return text;
}

std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return text;
  char buffer[512];
  while (std::fgets(buffer, sizeof buffer, pipe)) text += buffer;
  pclose(pipe);
  return text;
}

bool is_primitive(const std::string& line) {
  return line.find("/device.cuh:") != std::string::npos ||
         line.find("/emulator.h:") != std::string::npos;
}

}  // namespace

std::string name_of(const Block& block) { return "block " + indexed(block.index); }
std::string name_of(const Thread& thread) {
  return name_of(*thread.block) + " thread " + std::to_string(thread.rank);
}
std::string describe(const Thread& thread) {
  return name_of(thread) + ", last seen: " + thread.doing + " at " + source_line(thread.site);
}

std::string source_line(Site site) {
  if (site.line() == 0) return "its start";
  return std::string(site.file_name()) + ":" + std::to_string(site.line());
}

std::string source_line(const void* instruction) {
  Dl_info library;
  if (!dladdr(instruction, &library) || !library.dli_fname) return "an unknown place";
  // The byte before a return address belongs to the call.
  const size_t offset =
      static_cast<const char*>(instruction) - static_cast<const char*>(library.dli_fbase) - 1;
  char address[32];
  std::snprintf(address, sizeof address, " 0x%zx 2>/dev/null", offset);
  const std::string lines =
      output_of("addr2line -i -e '" + std::string(library.dli_fname) + "'" + address);
  std::string best;
  for (size_t begin = 0, end; (end = lines.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string line = lines.substr(begin, lines.find_first_of(" \n", begin) - begin);
    if (best.empty() || is_primitive(best)) best = line;
  }
  return best.empty() ? "an unknown line" : best;
}

std::string census(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  struct Group {
    int count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Group> groups;
  int exited = 0;
  for (const auto& cluster : clusters)
    for (const auto& block : cluster->blocks)
      for (const Thread& thread : block->threads) {
        if (thread.exited) {
          ++exited;
          continue;
        }
        Group& group = groups[thread.doing + (" at " + source_line(thread.site))];
        if (group.count++ == 0) group.first = &thread;
      }
  std::string text;
  for (const auto& [doing, group] : groups)
    text += "\n  " + std::to_string(group.count) + " threads: " + doing +
            " (first: " + name_of(*group.first) + ")";
  if (exited) text += "\n  " + std::to_string(exited) + " threads have exited";
  return text;
}

std::string deadlock_report(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  return "deadlock: no thread can run" + census(clusters);
}

std::string livelock_report(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  return "livelock: threads only wait in vain" + census(clusters);
}

void check_launch(const Shape& shape) {
  auto refuse = [](const std::string& why) { throw Error("launch: " + why); };
  auto count = [](uint64_t n) { return std::to_string(n); };
  const dim3& grid = shape.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    refuse("invalid grid " + count(grid.x) + " x " + count(grid.y) + " x " + count(grid.z));
  if (shape.threads == 0 || shape.threads > 1024)
    refuse("1 to 1024 threads expected, got " + count(shape.threads));
  if (shape.shared_bytes > 227 * 1024)
    refuse("at most 232448 bytes of shared memory, got " + count(shape.shared_bytes));
  if (shape.cluster == 0 || shape.cluster > 16 || grid.x % shape.cluster)
    refuse("a cluster of " + count(shape.cluster) + " blocks does not divide a grid of " +
           count(grid.x) + " along x, or exceeds 16");
  if (int(shape.cluster) > config.resident_blocks)
    refuse("a cluster of " + count(shape.cluster) + " blocks, the device holds " +
           count(config.resident_blocks));
  if (shape.cooperative && shape.blocks() > uint64_t(config.resident_blocks))
    refuse("too many blocks in cooperative launch: " + count(shape.blocks()) +
           ", the device holds " + count(config.resident_blocks));
}

}  // namespace emu
