#include "report.h"

#include <cxxabi.h>

#include <cstdarg>
#include <cstdlib>
#include <map>

namespace ptx {
namespace {

std::string readable(const std::string& name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

}  // namespace

std::string format(const char* text, ...) {
  char result[1024];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(result, sizeof result, text, arguments);
  va_end(arguments);
  return result;
}

std::string thread_name(const Warp& w, int lane) {
  return format("block %d thread %d", w.block->id, w.thread(lane));
}

void fail(const Warp& w, int lane, const Operation& o, const std::string& what) {
  const Kernel& kernel = *w.launch->kernel;
  throw Report{format("%s\n  %s, PTX line %d, %s\n  in %s", what.c_str(),
                      thread_name(w, lane).c_str(), o.line, kernel.where(o.line).c_str(),
                      readable(kernel.name).c_str())};
}

std::string report(const Launch& l, const char* what, size_t not_started) {
  const Kernel& kernel = *l.kernel;
  std::map<std::string, std::pair<int, std::string>> groups;
  for (const auto& cluster : l.clusters)
    for (const auto& block : cluster->blocks)
      for (const auto& w : block->warps)
        for (int lane = 0; lane < kWarp; ++lane) {
          if (w->exited >> lane & 1) continue;
          const Operation& o =
              kernel.operations[w->pc[lane] - (w->held >> lane & 1)];  // held: after the barrier
          auto& [count, first] =
              groups[format("%s at PTX line %d, %s", o.name, o.line, kernel.where(o.line).c_str())];
          if (!count++) first = thread_name(*w, lane);
        }
  std::string text = what;
  for (const auto& [where, group] : groups)
    text +=
        format("\n  %d threads: %s (first: %s)", group.first, where.c_str(), group.second.c_str());
  if (not_started && !l.grid.cooperative)
    text += format("\n  %zu %s have not started: the launch is not cooperative", not_started,
                   l.grid.cluster > 1 ? "clusters" : "blocks");
  return text + "\n  in " + readable(kernel.name);
}

}  // namespace ptx
