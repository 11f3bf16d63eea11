-- The health of a LanguagePipe for Argo CD, read from its conditions. docs/gitops.md has where it goes, and what each state means.
local function condition(kind)
  for _, each in ipairs(obj.status.conditions) do
    -- One of an earlier generation says nothing about this spec.
    if each.type == kind and (each.observedGeneration == nil or each.observedGeneration == obj.metadata.generation) then
      return each
    end
  end
  return {status = "Unknown"}
end

if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "the pipe is being deleted"}
end
if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration == nil then
  return {status = "Progressing", message = "the operator has not reported on the pipe yet"}
end
if obj.status.observedGeneration < obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not seen the last change yet"}
end

local ready, progressing, degraded = condition("Ready"), condition("Progressing"), condition("Degraded")

if obj.spec.paused then
  return {status = "Suspended", message = ready.status == "True" and progressing.message or ready.message}
end
if ready.status == "True" then -- also with the reasons Idle, ScaledToZero and ScalingUp
  return {status = "Healthy", message = ready.message}
end
if degraded.status == "True" then
  return {status = "Degraded", message = degraded.message}
end
if progressing.status == "True" or ready.reason == "ScaledToZero" then
  return {status = "Progressing", message = ready.message}
end
if ready.reason == "Unschedulable" and obj.spec.placement ~= nil and obj.spec.placement.allowPending then
  return {status = "Progressing", message = ready.message} -- a cluster autoscaler adds nodes
end
if progressing.reason == "ProgressDeadlineExceeded" or progressing.reason == "EvictionAdmitted" then
  return {status = "Degraded", message = progressing.message}
end
return {status = "Degraded", message = ready.message or "the operator reports no condition Ready"}
