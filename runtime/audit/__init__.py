"""The audit log: who did what. Changes are recorded in their own transaction, in the database of the change."""

from runtime.audit.acts import ANONYMOUS as ANONYMOUS
from runtime.audit.acts import Act as Act
from runtime.audit.acts import act_as as act_as
from runtime.audit.acts import acting as acting
from runtime.audit.acts import operator_act as operator_act
from runtime.audit.entries import BEGUN as BEGUN
from runtime.audit.entries import DONE as DONE
from runtime.audit.entries import UNKNOWN_OBJECT as UNKNOWN_OBJECT
from runtime.audit.entries import Action as Action
from runtime.audit.entries import NewEntry as NewEntry
from runtime.audit.entries import differences as differences
from runtime.audit.entries import object_name as object_name
from runtime.audit.recording import record as record
from runtime.audit.recording import record_all as record_all
