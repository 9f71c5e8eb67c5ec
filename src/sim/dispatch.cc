#include "slicellm/dispatch.h"

#include <algorithm>

#include "policy/json.h"
#include "sim/dispatchers.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

// Sends each task as it comes, whole, to the instance that `choose` names.
class Direct : public Dispatcher {
 public:
  explicit Direct(int32_t instances) : live_(static_cast<size_t>(instances), 0) {}

  void arrive(const DispatchTask& task) override { waiting_.push_back(task); }
  void returned(int32_t instance, const DispatchTask&, bool) override { --live_[instance]; }

  std::vector<Dispatch> dispatch(double) override {
    std::vector<Dispatch> sent;
    for (const DispatchTask& task : waiting_) {
      const int32_t instance = choose();
      ++live_[instance];
      sent.push_back({instance, task.number, task.max_tokens});
    }
    waiting_.clear();
    return sent;
  }

  std::string inspect() const override { return JsonObject().add("live", live_).text(); }

 protected:
  virtual int32_t choose() = 0;
  const std::vector<int64_t>& live() const { return live_; }  // tasks of each instance

 private:
  std::vector<DispatchTask> waiting_;
  std::vector<int64_t> live_;
};

class RoundRobin final : public Direct {
 public:
  using Direct::Direct;
  std::string name() const override { return "round_robin"; }

 private:
  int32_t choose() override {
    return static_cast<int32_t>(next_++ % static_cast<int64_t>(live().size()));
  }
  int64_t next_ = 0;
};

class LeastLoaded final : public Direct {
 public:
  using Direct::Direct;
  std::string name() const override { return "least_loaded"; }

 private:
  int32_t choose() override {
    return static_cast<int32_t>(std::min_element(live().begin(), live().end()) - live().begin());
  }
};

template <typename T>
std::unique_ptr<Dispatcher> make_direct(const Parameters&, int32_t instances, const View&) {
  return std::make_unique<T>(instances);
}

PolicyInfo round_robin_info() {
  return {"round_robin", "common practice", "Each task to the next instance in turn.", {}};
}
PolicyInfo least_loaded_info() {
  return {
      "least_loaded", "common practice", "Each task to the instance with the fewest tasks.", {}};
}

struct Entry {
  PolicyInfo (*info)();
  std::unique_ptr<Dispatcher> (*make)(const Parameters&, int32_t instances, const View& machine);
};

constexpr Entry kEntries[] = {
    {round_robin_info, make_direct<RoundRobin>},
    {least_loaded_info, make_direct<LeastLoaded>},
    {scls_dispatch_info, make_scls_dispatcher},
};

}  // namespace

std::vector<PolicyInfo> list_dispatchers() {
  std::vector<PolicyInfo> infos;
  for (const Entry& entry : kEntries) infos.push_back(entry.info());
  return infos;
}

std::unique_ptr<Dispatcher> make_dispatcher(std::string_view text, int32_t instances,
                                            const View& machine) {
  if (instances < 1) {
    throw Error(ErrorKind::invalid_argument, "instances", std::to_string(instances), "at least 1");
  }
  return make_by_name("dispatch", kEntries, text, [&](const Entry& entry, const Parameters& given) {
    return entry.make(given, instances, machine);
  });
}

}  // namespace slicellm
